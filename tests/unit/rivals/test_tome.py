"""ToMe's published rules, each against an independent computation."""

import pytest
import torch
from torch.nn import functional as F

from infinity.policy import RestoreContext
from stepvar_patch.policies.tome import ToMePolicy, match
from tests.toy import toy_model, toy_run, toy_text


@pytest.mark.parametrize("grid", [(4, 4), (5, 3)])
def test_tome_merges_the_most_similar_sources_into_their_destinations(
    grid: tuple[int, int],
) -> None:
    h, w = grid
    n, merged = h * w, 5
    x = torch.randn(2, n, 7)
    merge = match(x, grid, merged)
    assert merge.keep.counts == (n - merged,) * 2
    packed = merge.gather(x, merge.keep)
    corners = [y * w + u for y in range(0, h, 2) for u in range(0, w, 2)]
    sources = [i for i in range(n) if i not in corners]
    full = merge.copy_back(packed, RestoreContext(x, grid, 0, 0, "self_attention"))
    for row in range(2):
        similarity = F.cosine_similarity(x[row, sources][:, None], x[row, corners][None], dim=-1)
        ranked = similarity.amax(1).sort(descending=True).indices[:merged].tolist()
        groups = {i: [i] for i in range(n)}
        for rank in ranked:
            groups[corners[int(similarity[rank].argmax())]].append(sources[rank])
            del groups[sources[rank]]
        assert merge.keep.rows(row, row + 1).indices.tolist() == sorted(groups)
        for members in groups.values():
            mean = x[row, members].mean(0)
            for member in members:
                torch.testing.assert_close(full[row, member], mean)


def test_tome_merges_in_self_attention_only() -> None:
    toy, seen = toy_model(), dict[str, list[int]]()
    for branch in ("sa", "ca", "ffn"):
        counts = seen.setdefault(branch, [])
        getattr(next(iter(toy.layers())), branch).register_forward_hook(
            lambda _m, args, _out, c=counts: c.append(args[0].shape[1])
        )
    toy_run(toy, toy_text(toy, (3,)), policy=ToMePolicy())
    assert seen["sa"][-2:] == [72, 128]
    assert seen["ca"][-2:] == seen["ffn"][-2:] == [144, 256]
