from fixtures import model, work

__all__ = ["model", "work"]
