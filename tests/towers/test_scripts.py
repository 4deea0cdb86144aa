"""Captions in many scripts, by tokenizers of several kinds: read whole, told apart, cut cleanly, learned."""

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from crossmodal import recipe
from crossmodal.data.sources import open_source
from crossmodal.loading import load
from crossmodal.recipe import TextPart
from crossmodal.towers import build_text
from crossmodal.training.loop import fit
from tests.conftest import metrics

CAPTIONS = [
    "two children play in the snow",
    "δύο παιδιά παίζουν στο χιόνι",
    "двое детей играют в снегу",
    "שני ילדים משחקים בשלג",
    "طفلان يلعبان في الثلج",
    "दो बच्चे बर्फ में खेल रहे हैं",
    "เด็กสองคนเล่นหิมะ",
    "두 아이가 눈 속에서 놀고 있다",
    "雪の中で遊ぶ二人の子供",
    "两个孩子在雪地里玩耍",
    "ორი ბავშვი თოვლში თამაშობს",
    "hai đứa trẻ chơi trong tuyết 👧🏽👦",
]
END, PAD, UNKNOWN = "</s>", "<pad>", "<unk>"
SMALL = {"vocab_size": 1456, "pad_token_id": 0, "eos_token_id": 1}


def trained(folder, kind: str):
    """A transformers folder with a tokenizer of a kind that people train for many languages, and a small configuration."""
    if kind == "bytes":  # ByT5: no vocabulary at all
        config = {"model_type": "t5", "d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 1, **SMALL, "vocab_size": 384}
        transformers.ByT5Tokenizer().save_pretrained(folder)
    else:
        named = [open_source(f"emoji:twemoji?language={code}").classes[:300] for code in ("ja", "ru", "ar", "ko")]
        texts = [name for classes in named for names in classes for name in names]
        special = [PAD, END, UNKNOWN]
        if kind == "byte pairs":  # as GPT-2 and its kin
            made = Tokenizer(models.BPE())
            made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
            config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 128, **SMALL, "bos_token_id": 1}
        else:  # pieces with bytes for what is rare, as SigLIP2's and Gemma's
            made = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True))
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
            made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
            trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=special, show_progress=False)
            config = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
            config |= {**SMALL, "max_position_embeddings": 512}
        made.train_from_iterator(texts, trainer)
        if kind == "pieces":
            model = json.loads(made.to_str())["model"]
            vocabulary = model["vocab"] | {f"<0x{n:02X}>": len(model["vocab"]) + n for n in range(256)}
            merges = [tuple(pair) for pair in model["merges"]]
            made.model = models.BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN, byte_fallback=True)
        made.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=PAD, unk_token=UNKNOWN)
        fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["bytes", "byte pairs", "pieces"])
def test_every_script_is_read_whole_and_told_apart(tmp_path, kind):
    torch.manual_seed(0)
    tower = build_text(TextPart(tower=f"hf:{trained(tmp_path, kind)}")).eval()
    ids = tower.tokenize(CAPTIONS)
    unknown = tower.tokenizer.unk_token_id
    for caption, row, length in zip(CAPTIONS, ids, tower.lengths(ids).tolist(), strict=True):
        inside = row[: length - 1].tolist()
        assert row[length - 1] == tower.tokenizer.eos_token_id and unknown not in inside
        assert tower.words(inside) == caption
    with torch.no_grad():
        pooled = tower(ids)["pooled"]
        alone = torch.cat([tower(tower.tokenize([caption]))["pooled"] for caption in CAPTIONS])
    assert torch.allclose(pooled, alone, atol=1e-5), "padding beside longer captions changes nothing"
    assert torch.cdist(pooled, pooled).fill_diagonal_(9).min() > 1e-3
    short = build_text(TextPart(tower=f"hf:{tmp_path}", context_length=12)).tokenize(CAPTIONS)
    assert short.shape[1] == 12 and short.max() < len(tower.embedding)
    for caption, row in zip(CAPTIONS, short, strict=True):
        kept = tower.words([i for i in row.tolist() if i not in (0, 1)]).rstrip("\ufffd")  # a character may be cut between its bytes
        assert caption.startswith(kept)


@pytest.mark.parametrize("language", ["ja", "ar,ko"])
def test_names_in_other_scripts_are_learned(tmp_path, language):
    (tmp_path / "text").mkdir()
    folder = trained(tmp_path / "text", "pieces")
    (tmp_path / "t.yaml").write_text(
        f"""
out: {tmp_path / "run"}
model: {{embed_dim: 32, image: {{tower: timm:test_vit, kwargs: {{depth: 1}}}}, text: {{tower: "hf:{folder}"}}}}
objectives: {{contrastive: {{}}}}
data: {{train: "emoji:twemoji?language={language}&limit=24", image_size: 32, batch_size: 24, workers: 0, augment: {{crop: null}}}}
optim: {{lr: 3.0e-3}}
train: {{steps: 100, precision: fp32, trackers: [], checkpoint_every: 0}}
"""
    )
    out = fit(recipe.read(tmp_path / "t.yaml"))
    lines = metrics(out)
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    model, source = load(out), open_source(f"emoji:twemoji?language={language}&limit=24")
    images = model.encode_image([source[n].image for n in range(24)])
    texts = model.encode_text([source.classes[n][-1] for n in range(24)])
    assert (images @ texts.T).argmax(1).eq(torch.arange(24)).float().mean() > 0.25  # by chance: 0.04
