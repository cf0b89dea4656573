"""The synthetic world: everything that is true in it, and texts about it. Pure Python."""

from llama2_lib.world.documents import SHARES, Document, documents
from llama2_lib.world.facts import Event, Fact, Person, World, make_world

__all__ = ["SHARES", "Document", "Event", "Fact", "Person", "World", "documents", "make_world"]
