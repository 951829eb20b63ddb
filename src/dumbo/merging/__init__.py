"""Adapters put into the weights of their base model, tensor by tensor, without the model."""
