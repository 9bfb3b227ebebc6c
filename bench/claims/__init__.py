"""Published claims as data, the experiments behind them, and verdicts on them. Public: ``bench.claims.verdict``."""
