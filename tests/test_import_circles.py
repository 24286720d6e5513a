"""No module needs itself: imports inside functions and those for types alone are imports too."""

import grimp


def circles(imports):
    """Groups of names of which each leads to all others (Tarjan's strongly connected components)."""
    numbers, lowest, path, found = {}, {}, [], []

    def visit(name):
        numbers[name] = lowest[name] = len(numbers)
        path.append(name)
        for other in imports[name]:
            if other not in numbers:
                visit(other)
            if other in path:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == numbers[name]:
            group = path[path.index(name) :]
            del path[path.index(name) :]
            if len(group) > 1 or name in imports[name]:
                found.append(sorted(group))

    for name in imports:
        if name not in numbers:
            visit(name)
    return sorted(found)


def test_circles_are_found():
    imports = {"a": "b", "b": "cd", "c": "a", "d": "e", "e": "", "f": "f", "g": "h", "h": "gd"}
    assert circles(imports) == [["a", "b", "c"], ["f"], ["g", "h"]]
    assert circles({"a": "bc", "b": "c", "c": ""}) == []


def test_modules_import_in_one_direction():
    graph = grimp.build_graph("sparknet", cache_dir=None, exclude_type_checking_imports=False)
    imports = {module: sorted(graph.find_modules_directly_imported_by(module)) for module in sorted(graph.modules)}
    assert "sparknet.training.run_files.run_dir" in imports["sparknet.cli.train"], "the graph is that of the house"
    assert circles(imports) == []
