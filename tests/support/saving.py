"""A run for tests of what is saved: it keeps what it is told, and writes nothing."""


class Run:
    """What `save_policy` needs of an rlm.run.folder.Run."""

    def __init__(self, path):
        self.path, self.said = path, []
        self.info = self.said.append

    def write_evaluation(self, name, evaluation):
        pass
