"""Choosing a rank for a GPU: a memory model calibrated on records, a speed model, and the advice made of them.

shapes    a model's dimensions              setup    a training as the models see it
parts     memory as named parts             fit      their coefficients, from records
predict   bytes with intervals              speed    tokens/s, scaled from records (gpus: what a card has)
rank      accuracy by rank, from records    others   other public estimators (report: tables of errors)
question  one model on one GPU              advice   the answer (remedy: where nothing fits; check: its suite)
"""
