"""How files of each content type are compared: readers, and generators of differences."""
