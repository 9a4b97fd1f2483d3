"""Text in, text out: what runs a model. An engine knows nothing of examples, stores or Prefect."""

from tasks.engines.base import Engine, LoadedModel
from tasks.engines.messages import Continuation, Likelihood, Message, Reply, Request, Sampling
from tasks.engines.opening import open_engine, shared_server

__all__ = [
    "Continuation",
    "Engine",
    "Likelihood",
    "LoadedModel",
    "Message",
    "Reply",
    "Request",
    "Sampling",
    "open_engine",
    "shared_server",
]
