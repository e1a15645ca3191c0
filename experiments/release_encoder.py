"""Make the encoder in the box of a pretraining run: half-precision weights, a card, what it has seen.

    python experiments/release_encoder.py --run RUNS/mae --name cxr-tiny

The run is that of docs/results/main-job.md; its results there go into the card, and before them those of the
study that tests the encoder as released, if there is one:

    scanprior study cxr-tiny --data radiographs=DATA/shenzhen --out RUNS/study
    cp RUNS/study/results.json RUNS/study/report.md docs/results/cxr-tiny/
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from safetensors.torch import load_file, save_file

from scanprior.run import Run

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "docs" / "results" / "main-job" / "results.json"
STUDIES = REPOSITORY / "docs" / "results"
MOST_BYTES = 6_000_000

SUMMARY = (
    "ViT of 2.7 million weights for 64 px grey chest radiographs, masked autoencoder on 5,559 public ones"
)
DATA = {
    "kermany": {
        "what": "chest radiographs of children of 1 to 5 years, Guangzhou",
        "cite": "Kermany, Zhang, Goldbaum 2018, doi:10.17632/rscbjbr9sj; Cell 172:1122",
        "licence": "CC BY 4.0",
    },
    "shenzhen": {
        "what": "chest radiographs of adults, half of them with tuberculosis, Shenzhen",
        "cite": "Jaeger et al. 2014, Quant Imaging Med Surg 4(6):475",
        "licence": "released by the U.S. National Library of Medicine for free use with acknowledgement",
    },
    "nih_half": {
        "what": "441 chest radiographs of adults of ChestX-ray14, Bethesda",
        "cite": "Wang et al. 2017, ChestX-ray8, CVPR; the NIH Clinical Center provided the images",
        "licence": "NIH Clinical Center: no restrictions on use, with citation and acknowledgement",
    },
}
LIMITS = [
    "For research. It is no medical device, and no diagnosis may rest on it.",
    "Trained at 64 px: small nodules, fine lines and pneumothoraces are not in its images.",
    "More than four of five training images are of children of one hospital; frontal views alone.",
    "Trained and tested on compressed 8-bit copies of the public images, made square without regard to their shape.",
    "Results are of few public sets; on another hospital's images measure for yourself, with intervals.",
]


def study_rows(name: str) -> list[dict[str, Any]]:
    """Return the results of the study of the encoder, as it is released, on shenzhen."""
    file = STUDIES / name / "results.json"
    if not file.exists():
        return []
    rows = json.loads(file.read_text())["efficiency"]
    init = name.replace("-", "_")
    return [{"data": "shenzhen, held-out patients", **row} for row in rows if row["init"] == init]


def released_card(name: str, card: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Return the card of the run with what a user must know, and without the paths of the machine."""
    for source in card["data"]["sources"]:
        source["root"] = source["name"]
    rows = study_rows(name) + [row for row in results["rows"] if row["init"] == card["objective"]["name"]]
    return {
        "summary": SUMMARY,
        **card,
        "licence": "Apache-2.0 (the weights); the images have their own",
        "training_images": DATA,
        "results": rows,
        "limits": LIMITS,
    }


def readme(name: str, card: dict[str, Any]) -> str:
    """Return the card in words."""
    lines = [
        f"# {name}", "", f"{SUMMARY}. Start from it with `--from scanprior:{name}`.", "",
        f"Made by `scanprior pretrain` with `config.yaml`, seed {card['seed']}, {card['training']['steps']:,} steps of "
        f"{card['training']['batch_size']}, without labels, of training patients alone; kept in half precision. "
        "A second training from that file made the same weights, byte for byte.", "",
        "## Images", "", "| set | what | source | licence |", "|---|---|---|---|",
        *(f"| {key} | {d['what']} | {d['cite']} | {d['licence']} |" for key, d in DATA.items()), "",
        "`data.parquet` holds the digests of the pixels it has seen, so that a fine-tuning can say when its test "
        "images are among them.", "",
        "## Results, against the same network from scratch", "",
        "| test images | labels | metric | seeds | mean [95 %] | minus scratch [95 %] |", "|---|---|---|---|---|---|",
        *(
            f"| {r['data']} | {r['labels']} | {r['metric']} | {len(r['seeds'])} | "
            f"{r['value']:.3f} [{r['low']:.3f}–{r['high']:.3f}] | "
            f"{r['difference']:+.3f} [{r['difference_low']:+.3f} to {r['difference_high']:+.3f}] |"
            for r in card["results"] if r["metric"] == "auroc"
        ), "",
        "## Limits", "", *(f"- {text}" for text in LIMITS), "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="the pretraining run")
    parser.add_argument("--name", default="cxr-tiny")
    arguments = parser.parse_args()
    run = Run.open(arguments.run)
    out = REPOSITORY / "src" / "scanprior" / "released" / arguments.name
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to(torch.float16).contiguous() for name, tensor in load_file(run.weights).items()}
    save_file(weights, out / "model.safetensors")
    size = (out / "model.safetensors").stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{size:,} bytes are more than the {MOST_BYTES:,} that fit into the box")
    card = released_card(arguments.name, run.card, json.loads(RESULTS.read_text()))
    (out / "model.json").write_text(json.dumps(card, indent=1) + "\n")
    config = run.config()
    config["sources"] = [Path(source).name for source in config["sources"]]
    (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    seen = pd.read_parquet(run.path / "data.parquet")
    seen[seen["used"] == "pretrain"][["source", "split", "pixels", "used"]].to_parquet(
        out / "data.parquet", index=False
    )
    (out / "README.md").write_text(readme(arguments.name, card))
    (out / "model.safetensors").chmod(0o644)
    print(f"wrote {out}: {size:,} bytes of weights")


if __name__ == "__main__":
    main()
