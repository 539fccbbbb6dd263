"""
Make a tiny random Llama, as a Hugging Face folder, with all that a chat model has: grouped queries, a
byte-level BPE tokenizer, a chat template, stop tokens. Or print what transformers makes of a folder.

$ python runs/tiny_llama.py make TEXT.txt FOLDER
$ python runs/tiny_llama.py read FOLDER PROBE.txt "What is the capital of France?" ANSWER.txt 4096
"""

import math
import sys

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make(text: str, folder: str) -> None:
    """Write the Llama, and its tokenizer, which is trained on a text file."""
    from tokenizers import ByteLevelBPETokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = ByteLevelBPETokenizer()
    bpe.train(text, vocab_size=1000, special_tokens=special, show_progress=False)
    named = dict(zip(("unk_token", "bos_token", "eos_token"), special))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **named, pad_token=special[2])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)

    sizes = dict(hidden_size=96, intermediate_size=256, num_hidden_layers=3)
    sizes |= dict(num_attention_heads=6, num_key_value_heads=2, vocab_size=len(tokenizer))
    ids = dict(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    config = LlamaConfig(**sizes, **ids, max_position_embeddings=2048, tie_word_embeddings=True)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


@torch.no_grad()
def read(folder: str, probe: str, question: str, answered: str, window: str) -> None:
    """Print the bits per byte of a text file, read in windows of so many tokens, and the greedy answer to a
    question. Exit with an error if the answer is not the one that a file has, which is sample.py's."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with open(probe, encoding="utf-8", newline="") as f:
        text = f.read()
    first_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")  # which prepare.py puts before a document
    ids = torch.tensor([[first_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])

    # the last window is as long as the others: it reads again what it does not count
    nats, T = 0.0, min(int(window), model.config.max_position_embeddings)
    for start in range(0, ids.size(1) - 1, T):
        first = max(0, min(start, ids.size(1) - 1 - T))
        part = ids[:, first : first + T + 1]
        logits = model(part[:, :-1]).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="none")
        nats += losses[start - first :].sum().item()
    print(f"transformers: {nats / len(text.encode()) / math.log(2):.4f} bits per byte of {probe}")

    messages = [{"role": "user", "content": question}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    prompt = torch.tensor([chat["input_ids"]])
    answer = model.generate(prompt, max_new_tokens=40, do_sample=False)[0, prompt.size(1) :]
    answer = tokenizer.decode(answer, skip_special_tokens=True).strip()
    print(f"transformers: {answer}")
    with open(answered, encoding="utf-8", newline="") as f:
        here = f.read().strip()
    if here != answer:
        sys.exit(f"sample.py and transformers answer differently: {here!r}, {answer!r}")


if __name__ == "__main__":
    {"make": make, "read": read}[sys.argv[1]](*sys.argv[2:])
