"""What readers see: one style, one function per kind of plot, the verdict table, the notebook runner."""
