"""BEiT-3 with the native heads of its downstream tasks, and `build_model`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit3_bench.backbones.allocation import allocate
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.generation import Decoding, Hypothesis, search
from beit3_bench.backbones.beit3.multiway import BEiT3, VisionEmbedding
from beit3_bench.errors import BenchError
from beit3_bench.spelling import did_you_mean

if TYPE_CHECKING:
    from beit3_bench.backbones.beit3.decoding_graphs import GraphSearches


class BEiT3Head(nn.Module):
    """A BEiT-3 with something on top. ``final_norm`` is False for heads that bring their own norm."""

    final_norm = True
    unread: ClassVar[tuple[str, ...]] = ()
    """Patterns of official names that this head never reads: a checkpoint may leave them out."""
    output_layer: ClassVar[str] = ""
    """Official name of the weights whose rows are the outputs of a classifier; empty for heads that are none."""

    def __init__(self, config: BEiT3Config):
        super().__init__()
        self.config = config
        self.beit3 = BEiT3(config, self.final_norm)

    def exact(self, layer: nn.Module, x: Tensor) -> Tensor:
        """A last layer; in evaluation in the precision of its weights, also under autocast.

        Eight bits of a logit or an embedding make ties and other captions, and the layer costs little beside the encoder.
        """
        if self.training:
            return layer(x)
        with torch.autocast(x.device.type, enabled=False):
            return layer(x.to(next(layer.parameters()).dtype))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Official initialisation (`BEiT3Wrapper._init_weights`): every Linear truncated normal, std 0.02 cut at +-0.02,
        zero bias; LayerNorm 1 and 0; text table N(0, D^-0.5); patch convolution and positions as PyTorch makes them.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.02, b=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.LayerNorm, nn.Conv2d)):
                module.reset_parameters()
            elif isinstance(module, VisionEmbedding):
                nn.init.zeros_(module.cls_token)
                nn.init.zeros_(module.mask_token)
            elif isinstance(module, BEiT3):
                nn.init.normal_(module.text_embed.weight, std=module.config.embed_dim**-0.5)
                for table in module.encoder.embed_positions.values():
                    nn.init.normal_(table.weight)


class Retrieval(BEiT3Head):
    """Dual encoder: each tower's first token through a bias-free projection, L2-normalised (official `BEiT3ForRetrieval`)."""

    def __init__(self, config: BEiT3Config):
        super().__init__(config)
        dim = config.embed_dim
        self.language_head = nn.Linear(dim, dim, bias=False)
        self.vision_head = nn.Linear(dim, dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.logit_scale, math.log(1 / 0.07))

    def encode_image(self, images: Tensor) -> Tensor:
        """float32 (B, 3, S, S) -> (B, D) of unit length."""
        x = self.beit3(images, read="first").image
        assert x is not None
        return F.normalize(self.exact(self.vision_head, x[:, 0]), dim=-1)

    def encode_text(self, token_ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """int64 (N, L), padding_mask (N, L) -> (N, D) of unit length."""
        x = self.beit3(token_ids=token_ids, padding_mask=padding_mask, read="first").text
        assert x is not None
        return F.normalize(self.exact(self.language_head, x[:, 0]), dim=-1)

    def forward(
        self, images: Tensor, token_ids: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both towers and the temperature: ((B, D), (N, D), scalar logit_scale.exp()).

        One call for training, so that data-parallel wrappers see the whole computation.
        """
        return self.encode_image(images), self.encode_text(token_ids, padding_mask), self.logit_scale.exp()


class Pooler(nn.Module):
    """tanh(Linear(LayerNorm(CLS)))."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.dense = nn.Linear(dim, dim)

    def forward(self, first: Tensor) -> Tensor:
        return torch.tanh(self.dense(self.norm(first)))


class VisualQuestionAnswering(BEiT3Head):
    """Fusion encoder, pooled vision CLS, two-layer classifier (official `BEiT3ForVisualQuestionAnswering`)."""

    final_norm = False
    output_layer = "head.3.weight"

    def __init__(self, config: BEiT3Config, num_classes: int = 3129):
        super().__init__(config)
        dim = config.embed_dim
        self.pooler = Pooler(dim)
        self.head = nn.Sequential(
            nn.Linear(dim, 2 * dim), nn.LayerNorm(2 * dim), nn.GELU(), nn.Linear(2 * dim, num_classes)
        )

    def forward(
        self, images: Tensor, token_ids: Tensor, padding_mask: Tensor | None = None, image_index: Tensor | None = None
    ) -> Tensor:
        """(B, num_classes) logits; ``image_index`` (B,) where several questions share a row of ``images``."""
        x = self.beit3(images, token_ids, padding_mask, read="first", image_index=image_index).image
        assert x is not None
        return self.exact(self.head, self.exact(self.pooler, x[:, 0]))


class VisualEntailment(VisualQuestionAnswering):
    """SNLI-VE: the classifier of `VisualQuestionAnswering` over three labels. The official code has no such head; this one is ours."""

    def __init__(self, config: BEiT3Config, num_classes: int = 3):
        super().__init__(config, num_classes)


class TwoLayerMLP(nn.Module):
    """norm1 -> dense1 -> norm2 -> GELU -> dense2."""

    def __init__(self, in_dim: int, hidden_dim: int, num_classes: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.dense1 = nn.Linear(in_dim, hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.dense2 = nn.Linear(hidden_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense2(F.gelu(self.norm2(self.dense1(self.norm1(x)))))


class VisualReasoning(BEiT3Head):
    """NLVR2: two fused passes, [vision CLS, text BOS] of both concatenated (official `BEiT3ForVisualReasoning`)."""

    output_layer = "head.dense2.weight"

    def __init__(self, config: BEiT3Config, num_classes: int = 2):
        super().__init__(config)
        self.head = TwoLayerMLP(4 * config.embed_dim, 2 * config.embed_dim, num_classes)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            for dense in (self.head.dense1, self.head.dense2):
                dense.weight.mul_(0.001)

    def forward(self, left: Tensor, right: Tensor, token_ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """left, right (B, 3, S, S); (B, 2) logits, index 1 is True."""
        batch = len(token_ids)
        # The texts are the same in both passes; their embeddings are gathered twice, their ids tokenised once.
        pair = self.beit3(
            torch.cat([left, right]),
            token_ids.repeat(2, 1),
            None if padding_mask is None else padding_mask.repeat(2, 1),
            read="first",
        )
        assert pair.image is not None
        assert pair.text is not None
        both = torch.cat([pair.image[:, 0], pair.text[:, 0]], dim=-1)
        return self.exact(self.head, torch.cat([both[:batch], both[batch:]], dim=-1))


class ImageClassification(BEiT3Head):
    """Mean of the patch tokens, LayerNorm, Linear (official `BEiT3ForImageClassification`)."""

    final_norm = False
    unread = ("beit3.text_embed.weight", "beit3.vision_embed.mask_token", "*.B.*")
    output_layer = "head.weight"

    def __init__(self, config: BEiT3Config, num_classes: int = 1000):
        super().__init__(config)
        self.fc_norm = nn.LayerNorm(config.embed_dim)
        self.head = nn.Linear(config.embed_dim, num_classes)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            self.head.weight.mul_(0.001)

    def forward(self, images: Tensor) -> Tensor:
        """(B, num_classes) logits."""
        x = self.beit3(images).image
        assert x is not None
        return self.exact(self.head, self.fc_norm(x[:, 1:].mean(dim=1)))


class Captioning(BEiT3Head):
    """Masked conditional language model over captions (official `BEiT3ForCaptioning`)."""

    graphs: GraphSearches | None = None
    """Steps of the search, captured for a CUDA card; see `decoding_graphs.keep_graphs`."""

    def __init__(self, config: BEiT3Config):
        super().__init__(config)
        self.mlm_head = nn.Linear(config.embed_dim, config.vocab_size)

    def forward(
        self,
        images: Tensor,
        token_ids: Tensor,
        padding_mask: Tensor | None = None,
        masked_positions: Tensor | None = None,
    ) -> Tensor:
        """Logits at the masked positions, row-major over (batch, position): (n_masked, vocab).

        masked_positions: (B, L), non-zero = read; None = every position, then (B, L, vocab).
        """
        text = self.beit3(images, token_ids, padding_mask, causal=True).text
        assert text is not None
        return self.exact(self.mlm_head, text if masked_positions is None else text[masked_positions.bool()])

    @torch.no_grad()
    def generate(
        self,
        images: Tensor,
        num_beams: int = 3,
        max_length: int = 64,
        length_penalty: float = 0.6,
        decoder: str = "official",
    ) -> list[list[int]]:
        """Captions by beam search over masked conditional generation; see `generation.beam_search`.

        The defaults are those behind the published numbers (official eval command: 3 beams, penalty 0.6, and the
        default text length 64; the training recipe uses 32).
        """
        return [h.ids for h in self.hypotheses(images, Decoding(num_beams, max_length, length_penalty, decoder))]

    @torch.no_grad()
    def hypotheses(self, images: Tensor, decoding: Decoding) -> list[Hypothesis]:
        """The captions of `generate` with their scores."""
        return search(self, images, decoding) if self.graphs is None else self.graphs.search(self, images, decoding)


HEADS: dict[str, type[BEiT3Head]] = {
    "retrieval": Retrieval,
    "flickr30k": Retrieval,
    "coco-retrieval": Retrieval,
    "imagenet": Retrieval,
    "imagenet-linear": ImageClassification,
    "vqav2": VisualQuestionAnswering,
    "nlvr2": VisualReasoning,
    "snli-ve": VisualEntailment,
    "coco-caption": Captioning,
    "nocaps": Captioning,
}


def build_model(name: str, config: BEiT3Config, **head: Any) -> nn.Module:
    """The network of a task, freshly initialised, in eval mode.

    Args:
        name: a task name of the benchmark, or ``"retrieval"``.
        head: keyword arguments of the head, e.g. ``num_classes``.

    Raises:
        BenchError: unknown name (with the nearest known one), or arguments that the head does not take.
    """
    if name not in HEADS:
        raise BenchError(f"no model for task {name!r}; {did_you_mean(name, sorted(HEADS))}")
    model = blank_model(name, config, **head)
    if torch.get_default_device().type != "meta":
        allocate(model, torch.get_default_device())
        model.reset_parameters()
    return model


def blank_model(name: str, config: BEiT3Config, **head: Any) -> BEiT3Head:
    """A native model of `HEADS` on the meta device, in eval mode: shapes, and nothing that would have to be initialised twice."""
    try:
        with torch.device("meta"):
            return HEADS[name](config, **head).eval()
    except TypeError as error:
        raise BenchError(
            f"model {name!r}: {error}".replace(f"{HEADS[name].__name__}.__init__()", "the head")
        ) from error
