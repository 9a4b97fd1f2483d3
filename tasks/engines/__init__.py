"""Text in, text out: what runs a model. An engine knows nothing of examples, stores or Prefect."""

from tasks.engines.base import Engine, Message, Reply, Request, Sampling

__all__ = ["Engine", "Message", "Reply", "Request", "Sampling"]
