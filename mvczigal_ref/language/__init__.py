"""Language models that are asked: the protocol, a chat server, a local model."""
