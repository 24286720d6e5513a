"""The prepared store: Arrow files, and the manifest beside them."""
