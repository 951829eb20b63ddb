"""What `dumbo init` writes a first configuration from: the models, data files and devices of this machine."""
