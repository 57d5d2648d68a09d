"""All that knows vLLM: prompts go in, completions come out, and nothing outside this folder imports vLLM."""

from engine.interface import Completion, Engine, Partial, Prompt, Status
from engine.supervised import open_engine

__all__ = ["Completion", "Engine", "Partial", "Prompt", "Status", "open_engine"]
