"""Starting steps in no time: a server that has imported the libraries once and forks itself for every step."""
