"Package metadata comes from settings.ini, the one source; see pyproject.toml for what is dynamic."

from configparser import ConfigParser
from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=["="])
cfg.read("settings.ini", encoding="utf-8")
s = cfg["DEFAULT"]
extras = {
    k.removesuffix("_requirements"): v.split() for k, v in s.items() if k.endswith("_requirements")
}
setup(
    name=s["lib_name"],
    version=s["version"],
    description=s["description"],
    packages=find_packages(include=["medseg", "medseg.*"]),
    python_requires=f">={s['min_python']}",
    license="Apache-2.0",
    author=s["author"],
    keywords=s["keywords"].split(),
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    install_requires=s["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": s["console_scripts"].split()},
    include_package_data=True,
    package_data={
        "medseg": [
            "py.typed",
            "*/__init__.pyi",
            "experiments/*.py",
            "experiments/parameters/**/*.yaml",
        ]
    },
)
