"""The recipes: prepare, pretrain, finetune, evaluate, predict, demo."""
