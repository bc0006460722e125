"""When to lower the learning rate and when to stop: validation loss alone decides both."""

import math
from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """Stops after `patience` epochs without a lower validation loss."""

    patience: int
    best: float = math.inf
    best_epoch: int = 0
    epoch: int = 0

    def improved(self, val_loss: float) -> bool:
        """Take note of one more epoch; return whether it is the best so far (NaN never is)."""
        self.epoch += 1
        if val_loss < self.best:
            self.best, self.best_epoch = val_loss, self.epoch
            return True
        return False

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.epoch - self.best_epoch >= self.patience
