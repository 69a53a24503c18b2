from bench_cases import work

__all__ = ["work"]
