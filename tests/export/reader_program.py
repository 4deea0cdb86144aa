"""Reads exported folders with their own libraries alone, and embeds what it is given: python reader_program.py KIND=FOLDER …

FOLDER/in.npz has "pictures", uint8 [B, 3, H, W], and "texts"; FOLDER/out.npz gets "image" and "text" [B, D]. Nothing of crossmodal is
imported.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


def open_clip_folder(folder, pictures, texts):
    import open_clip

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    about = json.loads(Path(f"{folder}/open_clip_config.json").read_text())["preprocess_cfg"]
    x = (pictures / 255 - torch.tensor(about["mean"]).view(3, 1, 1)) / torch.tensor(about["std"]).view(3, 1, 1)
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    return model.eval().encode_image(x, normalize=True), model.encode_text(ids, normalize=True)


def transformers_folder(folder, pictures, texts):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    x = processor(list(pictures), do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]
    words = AutoTokenizer.from_pretrained(folder)
    full = model.config.model_type == "siglip"  # which reads its padding
    ids = words(texts, padding="max_length" if full else True, truncation=True, return_tensors="pt")
    ids = {"input_ids": ids["input_ids"]} if full else {k: ids[k] for k in ("input_ids", "attention_mask")}
    image, text = model.get_image_features(pixel_values=x), model.get_text_features(**ids)
    return F.normalize(image.pooler_output, dim=-1), F.normalize(text.pooler_output, dim=-1)


def onnx_folder(folder, pictures, texts):
    import onnxruntime
    from transformers import AutoTokenizer

    run = lambda half, x: torch.from_numpy(onnxruntime.InferenceSession(f"{folder}/{half}.onnx").run(None, x)[0])
    about = json.loads(Path(f"{folder}/crossmodal.json").read_text())
    ids = AutoTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, max_length=about["context_length"])["input_ids"]
    return run("image", {"pictures": pictures.numpy()}), run("text", {"ids": np.array(ids)})


def safetensors_folder(folder, pictures, texts):
    """A timm tower and a transformers one, from their plain weights."""
    import timm
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    model = timm.create_model("test_vit", num_classes=0, img_size=pictures.shape[-1], depth=2).eval()
    model.load_state_dict(load_file(f"{folder}/image.safetensors"))
    rest = load_file(f"{folder}/rest.safetensors")
    image = model((pictures / 255 - 0.5) / 0.5) @ rest["image_projection"].T
    text = AutoModel.from_config(AutoConfig.from_pretrained(f"{folder}/../bert"), add_pooling_layer=False).eval()
    text.load_state_dict(load_file(f"{folder}/text.safetensors"))
    ids = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    states, mask = text(**ids).last_hidden_state, ids["attention_mask"].unsqueeze(-1)
    pooled = (states * mask).sum(1) / mask.sum(1) @ rest["text_projection"].T
    return F.normalize(image, dim=-1), F.normalize(pooled, dim=-1)


if __name__ == "__main__":
    for job in sys.argv[1:]:
        kind, _, folder = job.partition("=")
        data = np.load(f"{folder}/in.npz")
        with torch.no_grad():
            image, text = globals()[f"{kind}_folder"](folder, torch.from_numpy(data["pictures"]), data["texts"].tolist())
        np.savez(f"{folder}/out.npz", image=image.numpy(), text=text.numpy())
    assert not [name for name in sys.modules if name.startswith("crossmodal")]
