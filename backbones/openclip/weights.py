"""The released files that open_clip builds, as data.

Architectures and tags are open_clip's (`open_clip.pretrained`), so are the scores of most files: its tables of zero-shot results
(github.com/mlfoundations/open_clip, docs/openclip_retrieval_results.csv and openclip_classification_results.csv, commit 89fb801); those of
SigLIP 2 and PE-Core are their READMEs'. Every score stands in results/published with its source. OpenAI's checksums are part of
its addresses; the others publish none.
"""

from __future__ import annotations

from beit3_bench.backbones.released import PublishedScore, ReleasedFile

OPENAI = "https://openaipublic.azureedge.net/clip/models"
HUB = "https://huggingface.co"
OPENAI_SHA256 = {
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
    "ViT-B-32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B-16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L-14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L-14-336": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}
_METRICS = (
    ("imagenet", "val", "top1"),
    ("coco-retrieval", "test", "IR@1"),
    ("coco-retrieval", "test", "TR@1"),
    ("flickr30k", "test", "IR@1"),
    ("flickr30k", "test", "TR@1"),
)
_SQUASHED = ("SigLIP", "PE-Core", "ViT-H-14-quickgelu.dfn5b", "ViT-H-14-378-quickgelu.dfn5b")
_COCO_TUNED = "mscoco_finetuned"
_DATA = {
    "openai": "400M web pairs (WIT)",
    "laion2b": "LAION-2B-en",
    "datacomp": "DataComp-1B",
    "merged2b": "Merged-2B",
    "metaclip": "2.5B web pairs chosen by MetaCLIP's rule",
    "dfn2b": "DFN-2B",
    "dfn5b": "DFN-5B",
    "webli": "WebLI",
    "meta": "PE's web pairs",
    _COCO_TUNED: "LAION-2B-en; tuned on COCO captions with the captioning loss alone",
}
"""Beginning of a tag -> what the weights were trained on."""
_LICENCES = {
    "dfn": "Apple's own, restrictive: read it at the location",
    "metaclip": "CC-BY-NC-4.0",
    "webli": "Apache-2.0",
    "meta": "Apache-2.0",
}
"""Beginning of a tag -> licence of the weights; MIT where none is named."""

# architecture, tag, repository on the hub ("" = OpenAI's own place), pixels, millions of parameters (0 = not printed), scores as in
# _METRICS
_FILES: tuple[tuple[str, str, str, int, int, tuple[float | None, ...]], ...] = (
    ("RN50x16", "openai", "", 384, 291, (70.72, 35.41, 55.36, 65.34, 85.7)),
    ("RN50x64", "openai", "", 448, 623, (73.91, 35.24, 58.42, 68.98, 86.9)),
    ("ViT-B-32", "openai", "", 224, 151, (63.32, 30.44, 50.12, 58.78, 78.9)),
    ("ViT-B-16", "openai", "", 224, 150, (68.34, 33.09, 52.42, 62.16, 82.2)),
    ("ViT-L-14", "openai", "", 224, 428, (75.54, 36.51, 56.34, 64.96, 85.2)),
    ("ViT-L-14-336", "openai", "", 336, 428, (76.56, 37.09, 57.94, 66.9, 87.7)),
    (
        "ViT-B-32",
        "laion2b_s34b_b79k",
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        224,
        151,
        (66.56, 39.34, 56.32, 66.78, 84.1),
    ),
    (
        "ViT-B-16",
        "laion2b_s34b_b88k",
        "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
        224,
        150,
        (70.23, 42.31, 59.44, 69.84, 86.3),
    ),
    (
        "ViT-L-14",
        "laion2b_s32b_b82k",
        "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
        224,
        428,
        (75.25, 46.51, 63.36, 75.52, 89.5),
    ),
    (
        "ViT-H-14",
        "laion2b_s32b_b79k",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        224,
        986,
        (77.96, 49.48, 65.92, 77.64, 90.7),
    ),
    (
        "ViT-g-14",
        "laion2b_s34b_b88k",
        "laion/CLIP-ViT-g-14-laion2B-s34B-b88K",
        224,
        1367,
        (78.47, 48.78, 66.38, 77.72, 91.4),
    ),
    (
        "ViT-bigG-14",
        "laion2b_s39b_b160k",
        "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        224,
        2540,
        (80.09, 51.37, 67.38, 79.56, 92.9),
    ),
    (
        "convnext_base_w",
        "laion2b_s13b_b82k",
        "laion/CLIP-convnext_base_w-laion2B-s13B-b82K",
        256,
        179,
        (70.78, 42.85, 60.58, 72.14, 87.7),
    ),
    (
        "convnext_large_d_320",
        "laion2b_s29b_b131k_ft_soup",
        "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
        320,
        352,
        (76.85, 48.29, 65.02, 77.04, 92.3),
    ),
    (
        "convnext_xxlarge",
        "laion2b_s34b_b82k_augreg_soup",
        "laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup",
        256,
        1201,
        (79.47, 49.97, 67.36, 79.02, 91.4),
    ),
    (
        "ViT-B-32",
        "datacomp_xl_s13b_b90k",
        "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
        224,
        151,
        (69.17, 37.14, 53.54, 61.08, 79.0),
    ),
    (
        "ViT-B-16",
        "datacomp_xl_s13b_b90k",
        "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
        224,
        150,
        (73.49, 40.16, 57.44, 67.56, 85.1),
    ),
    (
        "ViT-L-14",
        "datacomp_xl_s13b_b90k",
        "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
        224,
        428,
        (79.21, 45.73, 63.3, 73.38, 89.0),
    ),
    (
        "coca_ViT-B-32",
        "laion2b_s13b_b90k",
        "laion/CoCa-ViT-B-32-laion2B-s13B-b90k",
        224,
        254,
        (63.31, 36.18, 54.56, 63.36, 81.6),
    ),
    (
        "coca_ViT-L-14",
        "laion2b_s13b_b90k",
        "laion/CoCa-ViT-L-14-laion2B-s13B-b90k",
        224,
        638,
        (75.61, 45.65, 62.92, 74.28, 88.4),
    ),
    (
        "coca_ViT-L-14",
        "mscoco_finetuned_laion2b_s13b_b90k",
        "laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k",
        224,
        638,
        (72.04, 53.74, 66.82, 78.46, 89.0),
    ),
    (
        "EVA02-B-16",
        "merged2b_s8b_b131k",
        "timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k",
        224,
        150,
        (74.72, 42.15, 58.74, 71.46, 86.0),
    ),
    (
        "EVA02-L-14",
        "merged2b_s4b_b131k",
        "timm/eva02_large_patch14_clip_224.merged2b_s4b_b131k",
        224,
        428,
        (79.77, 47.47, 63.66, 77.32, 89.7),
    ),
    (
        "EVA02-L-14-336",
        "merged2b_s6b_b61k",
        "timm/eva02_large_patch14_clip_336.merged2b_s6b_b61k",
        336,
        428,
        (80.39, 47.94, 64.16, 78.02, 89.6),
    ),
    (
        "EVA02-E-14",
        "laion2b_s4b_b115k",
        "timm/eva02_enormous_patch14_clip_224.laion2b_s4b_b115k",
        224,
        4705,
        (81.96, 50.37, 67.46, 78.1, 92.2),
    ),
    (
        "EVA02-E-14-plus",
        "laion2b_s9b_b144k",
        "timm/eva02_enormous_patch14_plus_clip_224.laion2b_s9b_b144k",
        224,
        5045,
        (82.01, 51.1, 68.72, 78.86, 94.1),
    ),
    (
        "ViT-B-32-quickgelu",
        "metaclip_fullcc",
        "timm/vit_base_patch32_clip_224.metaclip_2pt5b",
        224,
        151,
        (67.66, 38.06, 55.18, 65.1, 80.8),
    ),
    (
        "ViT-B-16-quickgelu",
        "metaclip_fullcc",
        "timm/vit_base_patch16_clip_224.metaclip_2pt5b",
        224,
        150,
        (72.12, 41.34, 59.36, 70.72, 85.5),
    ),
    (
        "ViT-L-14-quickgelu",
        "metaclip_fullcc",
        "timm/vit_large_patch14_clip_224.metaclip_2pt5b",
        224,
        428,
        (79.17, 47.09, 64.42, 76.42, 90.1),
    ),
    (
        "ViT-H-14-quickgelu",
        "metaclip_fullcc",
        "timm/vit_huge_patch14_clip_224.metaclip_2pt5b",
        224,
        986,
        (80.51, 48.82, 66.22, 78.34, 91.8),
    ),
    ("ViT-L-14-quickgelu", "dfn2b", "apple/DFN2B-CLIP-ViT-L-14", 224, 428, (81.41, 48.56, 65.6, 75.46, 89.6)),
    ("ViT-H-14-quickgelu", "dfn5b", "apple/DFN5B-CLIP-ViT-H-14", 224, 986, (83.44, 53.91, 72.3, 80.12, 92.8)),
    ("ViT-H-14-378-quickgelu", "dfn5b", "apple/DFN5B-CLIP-ViT-H-14-378", 378, 987, (84.37, 55.64, 71.88, 82.02, 94.0)),
    ("ViT-B-16-SigLIP", "webli", "timm/ViT-B-16-SigLIP", 224, 203, (76.04, 47.78, 65.74, 74.68, 89.1)),
    ("ViT-B-16-SigLIP-256", "webli", "timm/ViT-B-16-SigLIP-256", 256, 203, (76.53, 48.34, 66.14, 75.04, 90.4)),
    ("ViT-B-16-SigLIP-384", "webli", "timm/ViT-B-16-SigLIP-384", 384, 203, (78.49, 49.9, 67.74, 78.48, 92.7)),
    ("ViT-B-16-SigLIP-512", "webli", "timm/ViT-B-16-SigLIP-512", 512, 204, (79.14, 50.55, 68.72, 79.06, 92.5)),
    ("ViT-L-16-SigLIP-256", "webli", "timm/ViT-L-16-SigLIP-256", 256, 652, (80.45, 52.28, 70.8, 79.04, 91.8)),
    ("ViT-L-16-SigLIP-384", "webli", "timm/ViT-L-16-SigLIP-384", 384, 652, (82.07, 53.91, 71.9, 81.42, 93.7)),
    ("ViT-SO400M-14-SigLIP", "webli", "timm/ViT-SO400M-14-SigLIP", 224, 877, (82.03, 51.76, 69.66, 75.26, 91.0)),
    (
        "ViT-SO400M-14-SigLIP-384",
        "webli",
        "timm/ViT-SO400M-14-SigLIP-384",
        384,
        878,
        (83.08, 54.21, 72.42, 82.96, 94.3),
    ),
    ("ViT-B-16-SigLIP2", "webli", "timm/ViT-B-16-SigLIP2", 224, 0, (78.2, 52.1, 68.9, None, None)),
    ("ViT-B-16-SigLIP2-384", "webli", "timm/ViT-B-16-SigLIP2-384", 384, 0, (80.6, 54.6, 71.4, None, None)),
    ("ViT-L-16-SigLIP2-384", "webli", "timm/ViT-L-16-SigLIP2-384", 384, 0, (83.1, 55.3, 71.4, None, None)),
    ("ViT-SO400M-14-SigLIP2-378", "webli", "timm/ViT-SO400M-14-SigLIP2-378", 378, 0, (84.1, 55.8, 71.7, None, None)),
    ("ViT-gopt-16-SigLIP2-384", "webli", "timm/ViT-gopt-16-SigLIP2-384", 384, 0, (85.0, 56.1, 72.8, None, None)),
    ("PE-Core-B-16", "meta", "timm/PE-Core-B-16", 224, 0, (78.4, 50.9, None, None, None)),
    ("PE-Core-L-14-336", "meta", "timm/PE-Core-L-14-336", 336, 0, (83.5, 57.1, None, None, None)),
    ("PE-Core-bigG-14-448", "meta", "timm/PE-Core-bigG-14-448", 448, 0, (85.4, 58.1, None, None, None)),
)


def tag_of(file: ReleasedFile) -> str:
    """open_clip's name of the weights."""
    return file.name.removeprefix(f"{file.preset}.")


def _released(
    architecture: str, tag: str, hub: str, size: int, params: int, scores: tuple[float | None, ...]
) -> ReleasedFile:
    name, tuned = f"{architecture}.{tag}", tag.startswith(_COCO_TUNED)
    if hub:
        remote = "open_clip_model.safetensors" if hub.startswith("timm/") else "open_clip_pytorch_model.bin"
        file, location, sha256 = f"{name}.{remote.rpartition('.')[2]}", f"{HUB}/{hub}/resolve/main", ""
    else:
        remote, sha256 = "", OPENAI_SHA256[architecture]
        file, location = (
            f"{architecture}px.pt" if architecture.endswith("-336") else f"{architecture}.pt",
            f"{OPENAI}/{sha256}",
        )
    return ReleasedFile(
        name,
        file,
        "fine-tuned" if tuned else "pretrained",
        architecture,
        size,
        "coco-caption" if tuned else None,
        "squash" if any(part in name for part in _SQUASHED) else "crop",
        params,
        trained_on=("COCO captions",) if tuned else (),
        note=f"trained on {_of_tag(_DATA, tag)}",
        published=tuple(
            PublishedScore(task, split, metric, value)
            for (task, split, metric), value in zip(_METRICS, scores, strict=True)
            if value is not None
        ),
        licence=_of_tag(_LICENCES, tag) or "MIT",
        family="openclip",
        location=location,
        remote=remote,
        sha256=sha256,
    )


def _of_tag(values: dict[str, str], tag: str) -> str:
    """The value of the longest beginning of a tag, "" where there is none."""
    known = [start for start in values if tag.startswith(start)]
    return values[max(known, key=len)] if known else ""


WEIGHTS: tuple[ReleasedFile, ...] = tuple(_released(*row) for row in _FILES)
"""Every file, family by family of models."""
