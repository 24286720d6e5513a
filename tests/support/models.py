"""Models that were never trained, as if they were loaded from a run."""

from image_rows import image_rows
from sparknet.data.loading.transform import Normalise
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.run_files.saved_model import Description, Model


def model_on(net, data, *, shape, classes, dtype="uint8", **more):
    """A model of one input, which is scaled, and one class."""
    name = data.input_names[0]
    rows = image_rows(shape, dtype=dtype, classes=classes, names=(name, data.target_names[0]))
    return model_of(net, data, rows, chain={name: Normalise(mean=None, scale=0.01)}, **more)


def model_of(net, data, rows, *, chain=None, **more):
    """A model of such rows, which reach the net as they are stored where nothing else is said."""
    description = Description(net=net, rows=rows, data=data, **more)
    objective = built(description)
    objective.module.eval()
    return Model(description=description, objective=objective, chain=chain or {})


def built(description):
    """Its objective, as a worker builds it."""
    recipe = Recipe.read(description.net, objective=description.objective)
    return build_objective(recipe, description.rows, batch_size=1, seed=0, data=description.data)
