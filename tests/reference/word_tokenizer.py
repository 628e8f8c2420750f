"""Files of a tokenizer whose tokens are words, for recorded comparisons."""


def word_tokenizer(words, added=(), template=None):
    """Return documents by file name; ids count up in the order given."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "special": False}
    entries = [
        {"id": len(words) + at, "content": token, "normalized": True, **flags}
        for at, token in enumerate(added)
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": entries,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: at for at, word in enumerate(words)},
            "unk_token": words[0],
        },
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    if template is not None:
        config["chat_template"] = template
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config}
