"""Small tokenizers in the files that models are published with."""

import base64
import json

ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def entry(token, index):
    """Entry of ``added_tokens`` in tokenizer.json."""
    return {"id": index, "content": token, **ADDED, "special": True}


def remove_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    return folder


def configure(folder, **settings):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**config, **settings}))


def change_tokenizer(folder, edit):
    document = json.loads((folder / "tokenizer.json").read_text())
    edit(document)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


def add_entry(folder, token, index):
    """Give tokenizer.json an added token."""
    return change_tokenizer(
        folder, lambda document: document["added_tokens"].append(entry(token, index))
    )


def sentencepiece(folder, pieces):
    """tokenizer.model: <unk>, <s>, </s>, then the pieces; the package must be installed."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = 2
    model.trainer_spec.unk_id, model.trainer_spec.bos_id, model.trainer_spec.eos_id = 0, 1, 2
    model.normalizer_spec.name = "identity"
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    for at, text in enumerate([*kinds, *pieces]):
        piece = model.pieces.add()
        piece.piece, piece.type, piece.score = text, kinds.get(text, 1), -float(at)
    remove_tokenizer(folder)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    configure(folder, tokenizer_class="LlamaTokenizer")
    return folder


def byte_pairs(folder, tokens):
    """vocab.json and merges.txt, of a class that reads them."""
    remove_tokenizer(folder)
    ids = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    configure(folder, tokenizer_class="GPT2Tokenizer", eos_token=tokens[0], unk_token=tokens[0])
    configure(folder, bos_token=tokens[0])
    return folder


def tekken(folder, words):
    """Mistral's tekken.json: ten special tokens, the bytes, then the words."""
    remove_tokenizer(folder)
    tokens = [bytes([byte]) for byte in range(256)] + [word.encode() for word in words]
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(tokens)
    ]
    names = ["<unk>", "<s>", "</s>", *(f"<SPECIAL_{rank}>" for rank in range(3, 10))]
    special = [
        {"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)
    ]
    config = {
        "pattern": r"\p{L}+|\p{N}|\s+|[^\s\p{L}\p{N}]+", "num_vocab_tokens": len(vocab),
        "default_vocab_size": len(vocab) + 10, "default_num_special_tokens": 10, "version": "v3",
    }  # fmt: skip
    document = {"config": config, "vocab": vocab, "special_tokens": special}
    (folder / "tekken.json").write_text(json.dumps(document))
    return folder
