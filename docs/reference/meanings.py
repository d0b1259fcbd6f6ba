"""What the code cannot say of its own names: the words of the reference beside them.

page.py holds each of these to the names in the code: a name without
words, or words without a name, is an error.
"""

from __future__ import annotations

# Keys of a result as JSON. Those of "timing" and "error" stand alone, as the columns of CSV do.
RESULT = {
    "index": "the prompt's place in the file, from 0",
    "custom_id": "your name for the prompt, or null",
    "prompt": "the prompt's text, or the list of messages of a chat",
    "completion": "the new text, after the prompt's if `echo` was asked for; null with an error",
    "finish_reason": "`stop`: an end token or a stop string ended the completion; `length`: the "
    "completion reached its greatest length; null with an error",
    "prompt_tokens": "tokens of the prompt, counted by the model's tokenizer",
    "completion_tokens": "tokens of the completion, the end token included",
    "model": "the model's alias",
    "queued_seconds": "seconds from `submit` to the start of the prompt's prefill",
    "prefill_seconds": "seconds from the start of prefill to the first token",
    "decode_seconds": "seconds from the first token to the last",
    "first_token_seconds": "seconds from the worker's claim of the shard to the first token, a "
    "load of the model included",
    "tokens_per_second": "completion tokens over the seconds of prefill and decode",
    "logprobs": "null, or, if they were asked for, a list with an object for each new token: "
    "`token`, `token_id`, `logprob`, and `top`, a list of the likeliest tokens in its place with "
    "the same three keys. Logprobs are natural logarithms of the model's own probabilities, "
    "before temperature and penalties; -9999 stands for a probability of 0",
    "error": "null, or an object with `code` and `message`",
    "error_code": "the `code` of the error",
    "error_message": "the `message` of the error",
}

# Codes of prompts and jobs that failed.
FAILURES = {
    "prompt_too_long": "the prompt does not fit the model's context; the message has both numbers",
    "out_of_memory": "the prompt does not fit the memory beside the model, even alone",
    "not_finite": "the model's numbers overflowed; use the compute mode `w8a16`, or another model",
    "worker_crashed": "the worker died several times on this prompt alone",
    "no_chat_template": "messages were sent to a model whose tokenizer has no chat template",
    "invalid_chat": "the chat template refused the messages, or leaves out what one of them says",
    "empty_prompt": "the prompt has no tokens, and the model has no beginning-of-text token",
    "invalid_text": "the tokenizer cannot read the prompt, or makes a token of it that the model "
    "does not have",
    "bad_parameter": "the worker's version refuses the parameters",
    "model_load_failed": "the job failed as a whole: its model could not be loaded, or "
    "fails with every prompt",
}

STATUSES = {
    "queued": "the job is stored, and no worker has begun it",
    "running": "a worker has claimed at least one of the job's shards",
    "completed": "every prompt has a result; some of the results may be errors",
    "failed": "the job could not go on, because its model did not load or fails with every "
    "prompt; `status` shows the reason",
    "cancelled": "somebody ended the job; finished completions stay",
}

CATALOGUE = {
    "hub_id": "the model on the Hugging Face hub; downloaded on first use",
    "folder": "a Hugging Face checkpoint folder on the worker's disk, relative to the TOML file; "
    "give this or `hub_id`, not both",
    "packaged": "a small checkpoint that travels with the program, in place of `hub_id`",
    "revision": "a branch, tag or commit on the hub",
    "context_tokens": "the greatest length of a prompt and its completion together, in tokens, "
    "where you want less than the model allows",
    "description": "a text that `tgp-jobs models` shows",
    "engine": "`transformers`, the default, or `null`: an engine without a model, which measures "
    "the queue and needs no `hub_id` and no `folder`",
    "load_seconds": "for `null`: seconds that a load takes",
    "micro_batch_seconds": "for `null`: seconds that a micro-batch takes",
    "crash_on": "for `null`: a prompt that kills the worker's process",
}
