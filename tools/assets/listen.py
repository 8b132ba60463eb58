"Runs before the cells of a chapter: which files of the project does the chapter read?"

_files_that_were_read = set()


def _listen(root, own, seen):
    import os
    import sys

    on_path = {os.path.abspath(p) for p in [*sys.path, ""]}

    def hear(event, args):
        if event not in ("open", "os.listdir", "os.scandir"):
            return
        if not args or not isinstance(args[0], (str, os.PathLike)):
            return
        path = os.path.abspath(args[0])
        if event == "open" and set(str(args[1] or "r")) & set("wax+"):
            return
        if event != "open" and path in on_path:
            return
        where = os.path.relpath(path, root)
        if where == own or where.startswith(("..", "medseg")):
            return
        if not any(word[0] in "._" for word in where.split("/")):
            seen.add(where)

    sys.addaudithook(hear)
