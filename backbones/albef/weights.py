"""The released ALBEF files as data: the authors', and LAVIS' own trainings.

File names and locations are those of the official README (github.com/salesforce/ALBEF, commit b9727e4) and of LAVIS'
`configs/models/albef_*.yaml` (github.com/salesforce/LAVIS, commit 506965b). The authors released no file that was tuned for NLVR2
or SNLI-VE: LAVIS' are the only ones. Every score stands in results/published/albef.csv with its source; neither house publishes
checksums, see `backbones.pins`.
"""

from __future__ import annotations

from functools import partial

from beit3_bench.backbones.released import PublishedScore, ReleasedFile, recalls

AUTHORS = "https://storage.googleapis.com/sfr-pcl-data-research/ALBEF"
LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/ALBEF"

_PAIRS = ("COCO captions", "Visual Genome")
_PRETRAINING = "pre-trained on images with captions: COCO, Visual Genome, SBU, Conceptual Captions 3M"
_VQA = ("VQAv2 train", "VQAv2 val", "Visual Genome QA")
_COCO = ("COCO Karpathy train and restval",)
_FLICKR = ("Flickr30K Karpathy train",)
_PROTOCOLS = {"coco-retrieval": "re-ranked 256", "flickr30k": "re-ranked 128", "vqav2": "ranking 128"}
_LAVIS_PROTOCOLS = {**_PROTOCOLS, "coco-retrieval": "re-ranked 128"}
_released = partial(
    ReleasedFile, preset="base", tokenizer="bert-base-uncased", licence="BSD-3-Clause", family="albef", location=AUTHORS
)


def _pretrained(name: str, file: str, note: str) -> ReleasedFile:
    return _released(name, file, "pretrained", image_size=256, params=210, trained_on=_PAIRS, note=note)


def _tuned(
    name: str,
    file: str,
    task: str,
    params: int,
    seen: tuple[str, ...],
    published: tuple[PublishedScore, ...] = (),
    lavis: bool = False,
) -> ReleasedFile:
    house = "LAVIS' own training" if lavis else "fine-tuned by the authors"
    return _released(
        name,
        file,
        "fine-tuned",
        image_size=384,
        task=task,
        params=params,
        parent="albef_14m",
        trained_on=_PAIRS + seen,
        note=f"{_PRETRAINING}, Conceptual Captions 12M; {house} on {', '.join(seen)}",
        published=published,
        location=LAVIS if lavis else AUTHORS,
        protocol=(_LAVIS_PROTOCOLS if lavis else _PROTOCOLS).get(task, ""),
    )


WEIGHTS: tuple[ReleasedFile, ...] = (
    _pretrained("albef_14m", "ALBEF.pth", f"{_PRETRAINING}, Conceptual Captions 12M"),
    _pretrained("albef_4m", "ALBEF_4M.pth", _PRETRAINING),
    _tuned(
        "albef_mscoco",
        "mscoco.pth",
        "coco-retrieval",
        210,
        _COCO,
        recalls("coco-retrieval", (77.6, 94.3, 97.2, 60.7, 84.3, 90.5)),
    ),
    _tuned(
        "albef_flickr30k",
        "flickr30k.pth",
        "flickr30k",
        210,
        _FLICKR,
        recalls("flickr30k", (95.9, 99.8, 100.0, 85.6, 97.5, 98.9)),
    ),
    _tuned(
        "albef_vqa",
        "vqa.pth",
        "vqav2",
        290,
        _VQA,
        (
            PublishedScore("vqav2", "test-dev", "vqa_accuracy", 75.84),
            PublishedScore("vqav2", "test-std", "vqa_accuracy", 76.04),
        ),
    ),
    _tuned("albef_coco_retrieval_lavis", "albef_coco_retrieval_lavis.pt", "coco-retrieval", 210, _COCO, lavis=True),
    _tuned("albef_flickr_retrieval_lavis", "albef_flickr_retrieval_lavis.pt", "flickr30k", 210, _FLICKR, lavis=True),
    _tuned("albef_vqav2_lavis", "albef_vqav2_lavis.pt", "vqav2", 290, _VQA, lavis=True),
    _tuned("albef_nlvr_lavis", "albef_nlvr_lavis.pt", "nlvr2", 259, ("NLVR2 train",), lavis=True),
    _tuned("albef_snli_ve_lavis", "albef_snli_ve_lavis.pt", "snli-ve", 210, ("SNLI-VE train",), lavis=True),
)
"""Every released file that a task can be asked of."""
