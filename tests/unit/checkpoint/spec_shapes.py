"""Keys and shapes of the wire format, from the specification's tables, not from the modules."""

from infinity.config import TokenizerConfig, TransformerConfig

Shape = tuple[int, ...]


def _linear(name: str, out: int, into: int) -> dict[str, Shape]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def transformer_shapes(config: TransformerConfig) -> dict[str, Shape]:
    """Source: spec infinity-transformer §3.1 and §3.2."""
    c, ct, h = config.width, config.text_width, config.heads
    d = config.codebook_dim * (4 if config.patchify else 1)
    m = 256 * round(c * config.mlp_ratio / 256)
    pool = max(1, ct // (128 if c <= 4096 else 64))
    shapes: dict[str, Shape] = {
        "cfg_uncond": (config.text_max_tokens, ct),
        "text_norm.weight": (ct,),
        "text_proj_for_sos.ca.mat_q": (1, pool, c // pool),
        "text_proj_for_sos.ca.mat_kv.weight": (2 * c, ct),
        "text_proj_for_sos.ca.v_bias": (c,),
        "text_proj_for_sos.ca.zero_k_bias": (c,),
        "pos_start": (1, 1, c),
        "lvl_embed.weight": (15, c),
        **_linear("text_proj_for_sos.ca.proj", c, c),
        **_linear("text_proj_for_ca.0", c, ct),
        **_linear("text_proj_for_ca.2", c, c),
        **_linear("word_embed", c, d),
        **_linear("shared_ada_lin.1", 6 * c, c),
        **_linear("head_nm.ada_lin.1", 2 * c, c),
        **_linear("head", 2 * d, c),
    }
    block: dict[str, Shape] = {
        "sa.mat_qkv.weight": (3 * c, c),
        "sa.q_bias": (c,),
        "sa.v_bias": (c,),
        "sa.zero_k_bias": (c,),
        "sa.scale_mul_1H11": (1, h, 1, 1),
        "ca.mat_kv.weight": (2 * c, c),
        "ca.v_bias": (c,),
        "ca.zero_k_bias": (c,),
        "ca_norm.weight": (c,),
        "ca_norm.bias": (c,),
        "ada_gss": (1, 1, 6, c),
        **_linear("sa.proj", c, c),
        **_linear("ca.mat_q", c, c),
        **_linear("ca.proj", c, c),
        **_linear("ffn.fc1", m, c),
        **_linear("ffn.fc2", c, m),
    }
    size = config.depth // config.block_chunks
    for i in range(config.depth):
        prefix = f"block_chunks.{i // size}.module.{i % size}."
        if config.block_chunks == 1:
            prefix = f"blocks.{i}."
        shapes |= {prefix + key: shape for key, shape in block.items()}
    return shapes


def _conv(name: str, out: int, into: int, kernel: int = 3) -> dict[str, Shape]:
    return {f"{name}.conv.weight": (out, into, kernel, kernel), f"{name}.conv.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.norm.weight": (width,), f"{name}.norm.bias": (width,)}


def _res(name: str, a: int, b: int) -> dict[str, Shape]:
    shapes = {
        **_norm(f"{name}.norm1", a),
        **_conv(f"{name}.conv1", b, a),
        **_norm(f"{name}.norm2", b),
        **_conv(f"{name}.conv2", b, b),
    }
    return shapes if a == b else {**shapes, **_conv(f"{name}.nin_shortcut", b, a, 1)}


def tokenizer_shapes(config: TokenizerConfig) -> dict[str, Shape]:
    """Source: spec bsq-vae §2.4, without the quantiser's mask."""
    ch, bits, levels = config.channels, config.codebook_dim, len(config.channel_multipliers)
    c = [ch * m for m in config.channel_multipliers]
    strides = {1: 0, 2: 1, 4: 2, 8: 3, 16: 4}[config.patch_size]
    shapes = _conv("encoder.conv_in", ch, 3)
    for i in range(levels):
        for j in range(config.res_blocks):
            a = (c[i - 1] if i else ch) if j == 0 else c[i]
            shapes |= _res(f"encoder.down.{i}.block.{j}", a, c[i])
        if i < strides:
            shapes |= _conv(f"encoder.down.{i}.downsample.conv", c[i], c[i])
        for j in range(config.res_blocks + 1):
            a = c[min(i + 1, levels - 1)] if j == 0 else c[i]
            shapes |= _res(f"decoder.up.{i}.block.{j}", a, c[i])
        if 1 <= i <= strides:
            shapes |= _conv(f"decoder.up.{i}.upsample.conv", c[i], c[i])
    for side in ("encoder", "decoder"):
        for block in ("block_1", "block_2"):
            shapes |= _res(f"{side}.mid.{block}", c[-1], c[-1])
    shapes |= _norm("encoder.norm_out", c[-1]) | _conv("encoder.conv_out", bits, c[-1])
    shapes |= _conv("decoder.conv_in", c[-1], bits) | _norm("decoder.norm_out", c[0])
    return shapes | _conv("decoder.conv_out", 3, c[0])
