def as_optimizer(*a, **k):
    raise NotImplementedError
