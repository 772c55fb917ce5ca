"""Page to play with a policy: prompt and settings in, pictures and scores out."""

from mvczigal_ref.demo.play import Played, Playground, Request

__all__ = ["Played", "Playground", "Request"]
