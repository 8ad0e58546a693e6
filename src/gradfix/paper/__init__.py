"""The paper's tables on public models, from ids on the Hub: studies are data, the work is `compare`'s."""
