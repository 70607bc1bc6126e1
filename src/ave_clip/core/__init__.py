"""From a file to its events: the modules that ship with a checkpoint, each importing only its siblings."""
