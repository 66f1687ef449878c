"""Names and shapes of released state dicts for which there is no golden file, after the authors' code.

Buffers that are no weights are among them where that code saves them.
"""

Shapes = dict[str, list[int]]


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": [outputs, inputs], **({f"{name}.bias": [outputs]} if bias else {})}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": [width], f"{name}.bias": [width]}


def swin(
    width: int, depths: list[int], heads: list[int], window: int, grid: int, *, v2: bool = False, life: bool = False
) -> Shapes:
    """Swin, Swin-V2, and Swin-V2 with LIFE: 10 classes, patches of 4, a grid that the windows divide in every stage."""
    shapes = {"patch_embed.proj.weight": [width, 3, 4, 4], "patch_embed.proj.bias": [width]}
    shapes |= norm("patch_embed.norm", width)
    for stage, depth in enumerate(depths):
        channels, side, tokens = width * 2**stage, grid // 2**stage, window**2
        for index in range(depth):
            block = f"layers.{stage}.blocks.{index}"
            if index % 2 and side > window:
                shapes[f"{block}.attn_mask"] = [(side // window) ** 2, tokens, tokens]
            shapes |= norm(f"{block}.norm1", channels) | norm(f"{block}.norm2", channels)
            shapes |= window_attention(f"{block}.attn", channels, heads[stage], window, v2, life)
            shapes |= linear(f"{block}.mlp.fc1", channels, 4 * channels)
            shapes |= linear(f"{block}.mlp.fc2", 4 * channels, channels)
        if stage + 1 < len(depths):
            merge = f"layers.{stage}.downsample"
            shapes |= linear(f"{merge}.reduction", 4 * channels, 2 * channels, bias=False)
            shapes |= norm(f"{merge}.norm", (2 if v2 else 4) * channels)
    return shapes | norm("norm", channels) | linear("head", channels, 10)


def window_attention(name: str, width: int, heads: int, window: int, v2: bool, life: bool) -> Shapes:
    side = 2 * window - 1
    shapes = {f"{name}.relative_position_index": [window**2, window**2], **linear(f"{name}.proj", width, width)}
    if not v2:
        table = {f"{name}.relative_position_bias_table": [side**2, heads]}
        return shapes | table | linear(f"{name}.qkv", width, 3 * width)
    shapes |= {f"{name}.relative_coords_table": [1, side, side, 2], f"{name}.logit_scale": [heads, 1, 1]}
    shapes |= linear(f"{name}.cpb_mlp.0", 2, 512) | linear(f"{name}.cpb_mlp.2", 512, heads, bias=False)
    shapes |= {f"{name}.q_bias": [width], f"{name}.v_bias": [width]}
    return shapes | (scales(f"{name}.qkv", width) if life else linear(f"{name}.qkv", width, 3 * width, bias=False))


def scales(name: str, width: int) -> Shapes:
    """LIFE's part."""
    return linear(f"{name}.scale1", width, width) | {
        f"{name}.scale2.depthwise.weight": [width, 1, 3, 3],
        f"{name}.scale2.pointwise.weight": [width, width, 1, 1],
        f"{name}.scale3.depthwise.weight": [width, 1, 5, 5],
        f"{name}.scale3.pointwise.weight": [width, width, 1, 1],
    }


def t2t(depth: int = 7, width: int = 256, classes: int = 1000) -> Shapes:
    """T2T-ViT with Performers, 224 px."""
    shapes = {"cls_token": [1, 1, width], "pos_embed": [1, 197, width]}
    for number, inputs in (("1", 147), ("2", 576)):
        name = f"tokens_to_token.attention{number}"
        shapes |= {f"{name}.w": [32, 64], **linear(f"{name}.kqv", inputs, 192), **linear(f"{name}.proj", 64, 64)}
        shapes |= norm(f"{name}.norm1", inputs) | norm(f"{name}.norm2", 64)
        shapes |= linear(f"{name}.mlp.0", 64, 64) | linear(f"{name}.mlp.2", 64, 64)
    shapes |= linear("tokens_to_token.project", 576, width)
    for i in range(depth):
        shapes |= norm(f"blocks.{i}.norm1", width) | norm(f"blocks.{i}.norm2", width)
        shapes |= linear(f"blocks.{i}.attn.qkv", width, 3 * width, bias=False)
        shapes |= linear(f"blocks.{i}.attn.proj", width, width)
        shapes |= linear(f"blocks.{i}.mlp.fc1", width, 2 * width) | linear(f"blocks.{i}.mlp.fc2", 2 * width, width)
    return shapes | norm("norm", width) | linear("head", width, classes)
