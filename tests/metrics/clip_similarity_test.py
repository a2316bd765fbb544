"""Text alignment compared with transformers' CLIP with random weights, and the error without weights."""

import json

import numpy as np
import pytest
import torch
import transformers

from walt_t5x import evaluate
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.html.report_inputs import read_scores
from walt_t5x.metrics.clip_similarity import ClipSimilarity, preprocess


def _tiny_clip(folder):
  torch.manual_seed(0)
  tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
  tower["num_attention_heads"] = 2
  text = {**tower, "vocab_size": 60, "max_position_embeddings": 12, "eos_token_id": 1}
  vision = {**tower, "image_size": 32, "patch_size": 8}
  config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
  model = transformers.CLIPModel(config).eval()
  model.save_pretrained(folder)
  letters = "abcdefghijklmnopqrstuvwxyz"
  words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
  (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
  (folder / "merges.txt").write_text("#version: 0.2\n")
  (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
  return model


def test_the_score_of_a_folder_equals_the_model(tmp_path, capsys):
  model = _tiny_clip(tmp_path / "clip")
  folder, rng = SampleFolder(tmp_path / "samples"), np.random.default_rng(0)
  prompts = ["a red square moves right and on", "up"]
  for i, prompt in enumerate(prompts):
    videos = {"base": rng.uniform(size=(3, 32, 32, 3)).astype(np.float32)}
    folder.write(i, prompt=prompt, videos=videos, fps=8, seed=0, steps={"base": 4}, fingerprints={})
  flags = ["--protocol=text_alignment", f"--samples={tmp_path / 'samples'}"]
  result = evaluate.run([*flags, f"--clip_weights={tmp_path / 'clip'}"])

  # One token per letter, the last of each word with </w>; then start and end, truncated to twelve.
  vocabulary = json.loads((tmp_path / "clip" / "vocab.json").read_text())
  expected = []
  for sample, prompt in zip(folder.samples(), prompts):
    ids = [vocabulary[w] for word in prompt.split() for w in (*word[:-1], f"{word[-1]}</w>")]
    ids = torch.tensor([[0, *ids[:10], 1]])
    frames = np.rint(folder.read(sample, "base") * 255) / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = torch.from_numpy(((frames - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
      out = model(input_ids=ids, pixel_values=pixels)
    expected.append((out.logits_per_image / model.logit_scale.exp()).mean().item())
  assert abs(expected[0] - expected[1]) > 1e-3
  got = result["scores"]["base"]
  assert got["text_alignment/similarity"] == pytest.approx(np.mean(expected), abs=1e-5)
  assert got["text_alignment/clips"] == 2
  (row,) = read_scores(tmp_path / "samples" / "scores_text_alignment.json")
  assert row.value == f"{got['text_alignment/similarity']:.4f}" and "CLIP" in row.network

  with pytest.raises(
    SystemExit, match=r"(?s)clip_weights=None.*clip-vit-base-patch32.*needs no weights"
  ):
    evaluate.run(flags)


def test_frames_are_cropped_to_the_central_square():
  frames = np.zeros((1, 8, 16, 3), np.uint8)
  frames[:, :, 4:12] = 255
  assert preprocess(frames, 8).shape == (1, 3, 8, 8)
  assert (preprocess(frames, 8) > 0).all()
  frames = np.random.default_rng(1).integers(0, 256, size=(2, 20, 10, 3)).astype(np.uint8)
  assert preprocess(frames, 16).shape == (2, 3, 16, 16)
  with pytest.raises(FileNotFoundError, match="tokenizer"):
    ClipSimilarity.load("/nonexistent")
