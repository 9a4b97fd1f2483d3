"""The embedded default: a small synthetic world, and the tiny models trained on it.

It exists so that the whole pipeline can be run, tested and measured with no network and no GPU. `world` says what is
true, `documents` state it, `corpus` turns both into chats, and `pretrain` trains the base model on them. `task` and
`benchmarks` measure it. Everything after that is the production path.
"""
