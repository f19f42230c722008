"""A family inferred from a model's modules, with the evidence.

It runs only on request. It reads names, widths, the order in which the layers' own
source calls their modules and, where projections are fused, one forward pass. What it cannot see it
leaves out and lists; where two candidates remain it raises an error.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deltakit.arch.family import Family, LayerStack, Location, attention, input_of, output
from deltakit.arch.resolve import handles_of, linear_widths
from deltakit.core.site import Columns, Site
from deltakit.errors import UnknownArchitecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BEFORE, _AFTER = "(to_|linear_|w)?", "(_?(proj|projection|lin|linear|layer))?"
_QUERY, _KEY, _VALUE, _FUSED, _OUT, _GATE, _UP, _GATE_UP = (
    re.compile(f"{_BEFORE}({stem}){_AFTER}", re.IGNORECASE)
    for stem in (
        "q|query",
        "k|key",
        "v|value",
        "c_attn|qkv|query_key_value",
        "o|out|output|dense|c|proj|c_proj",
        "gate|wi_0|i_0|w1|1",
        "up|wi_1|i_1|w3|3",
        "gate_up|gate_and_up",
    )
)


@dataclass(frozen=True, kw_only=True)
class Inference:
    """The result of reading a model's modules.

    Attributes:
        family: for `register_family`, if the evidence convinces.
        evidence: one line for each stack and each site, found or left out.
    """

    family: Family
    evidence: tuple[str, ...]


def infer_family(model: "PreTrainedModel") -> Inference:
    """Reads a family off the modules of a model, for one that deltakit does not know.

    Nothing is registered: look at the evidence, then ``register_family(inference.family)``. What
    is left out of it (the token site always is) a site map of your own can add.

    Raises:
        UnknownArchitecture: no layers with attention, or two candidates for one site.
    """
    readings = [_Reading(model, path, layers) for path, layers in _lists(model).items()]
    if not readings:
        raise UnknownArchitecture(
            f"{type(model).__name__} has no list of like layers in which linear projections are "
            "called query, key and value; describe it with deltakit.Family(...)."
        )
    stacks = tuple(stack for reading in readings for stack in reading.stacks())
    model_type = model.config.model_type
    family = Family(name=model_type, model_types=(model_type,), stacks=stacks)
    handles_of(model, family)
    return Inference(
        family=family, evidence=tuple(line for reading in readings for line in reading.evidence)
    )


# ------------------------------------------------------------------------- what there is in a layer

Linears = dict[str, tuple[int, int]]
"""The (in, out) of each linear projection, by its path."""


def _lists(model: "PreTrainedModel") -> dict[str, list[nn.Module]]:
    """The innermost lists of like layers that have attention, by path, "*" for an index in it."""
    found = [
        (name, list(module))
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len({type(layer) for layer in module}) == 1
        and _projections(_linears(module[0]))
    ]
    lists: dict[str, list[nn.Module]] = {}
    for name, layers in found:
        if not any(other.startswith(f"{name}.") for other, _ in found):
            lists.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).extend(layers)
    return lists


def _linears(layer: nn.Module) -> Linears:
    linears = {}
    for name, module in layer.named_modules():
        try:
            linears[name] = linear_widths(module)
        except UnknownArchitecture:
            continue
    return linears


def _projections(linears: Linears) -> dict[str, tuple[str, ...]]:
    """By the module that holds them: the paths of query, key and value, or of all three in one."""
    found = {}
    for parent in dict.fromkeys(name.rpartition(".")[0] for name in linears):
        inside = [name for name in linears if name.rpartition(".")[0] == parent]
        three = [_named(inside, pattern) for pattern in (_QUERY, _KEY, _VALUE)]
        fused = [n for n in _named(inside, _FUSED) if linears[n][1] > linears[n][0]]
        if all(three):
            found[parent] = tuple(_one(names, "query, key or value") for names in three)
        elif fused:
            found[parent] = (_one(fused, "fused projection"),)
    return found


def _named(paths: list[str], pattern: re.Pattern[str]) -> list[str]:
    return [path for path in paths if pattern.fullmatch(path.rpartition(".")[2])]


def _one(candidates: list[str], role: str) -> str:
    """The only candidate. Raises `UnknownArchitecture` where there are more or none."""
    if len(candidates) == 1:
        return candidates[0]
    found = ", ".join(candidates) or "none"
    raise UnknownArchitecture(
        f"cannot tell which projection of a layer is its {role}; candidates: {found}. Say it with "
        "deltakit.register_family(deltakit.Family(...))."
    )


@dataclass(frozen=True, eq=False)
class _Reading:
    """One list of layers, read."""

    model: "PreTrainedModel"
    path: str
    layers: list[nn.Module]
    evidence: list[str] = field(default_factory=list)

    def stacks(self) -> Iterator[LayerStack]:
        """The list as a stack, and the attention across in it as another."""
        kind = type(self.layers[0]).__name__
        self.evidence.append(f"{self.path}: {len(self.layers)} layers of {kind}")
        linears = self._linears()
        own, across = self._split(_projections(linears))
        sites = self._attention(linears, own)
        rest = {n: w for n, w in linears.items() if not self._taken(n, linears, (own, *across))}
        d = linears[own[0]][0]
        sites |= self._ffn(rest, d) | self._block(own[0])
        normed = self._sandwich(sites)
        sites = self._summands(sites, normed)
        name = re.sub(r"[.*]+", "_", self.path)
        yield LayerStack(name=name, layers=self.path, sites=sites)
        for paths in across:
            self.evidence.append(f"{self.path}: attention across, as the stack {name}_cross")
            sites = self._summands(self._attention(linears, paths), normed)
            yield LayerStack(name=f"{name}_cross", layers=self.path, sites=sites)

    def _note(self, site: str, reason: str) -> None:
        self.evidence.append(f"{self.path}.*: {site}: {reason}")

    def _linears(self) -> Linears:
        """The projections that all layers have alike."""
        each = [_linears(layer) for layer in self.layers]
        common = {n: w for n, w in each[0].items() if all(other.get(n) == w for other in each)}
        odd = sorted({name for linears in each for name in linears} - set(common))
        if odd:
            self._note(", ".join(odd), "left out, not in all layers, or not of one width")
        loose = [
            f"{name}.{parameter}".removeprefix(".")
            for name, module in self.layers[0].named_modules()
            for parameter, _ in module.named_parameters(recurse=False)
            if name not in each[0] and not _is_norm(module)
        ]
        if loose:
            self._note(", ".join(loose), "in no projection or norm; what it does is not seen")
        return common

    def _split(
        self, found: dict[str, tuple[str, ...]]
    ) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The attention of the layer to itself, and that to another model's output."""
        across = [name for name in found if re.search(r"cross|enc(oder)?_?(dec)?_?att", name, re.I)]
        own = [name for name in found if name not in across]
        if len(found) == 1:
            own, across = list(found), []
        _one(own, "self-attention")
        return found[own[0]], [found[name] for name in across]

    # ------------------------------------------------------------------------------- attention

    def _out(self, linears: Linears, paths: tuple[str, ...]) -> tuple[str, str]:
        """The last projection of attention, and the module that has all of it."""
        d = linears[paths[0]][0]
        scope = paths[0].rpartition(".")[0]
        while True:
            inside = [
                name
                for name, widths in linears.items()
                if name not in paths
                and (not scope or name.startswith(f"{scope}."))
                and widths[1] == d
                and (len(paths) == 1 or widths[0] == linears[paths[0]][1])
            ]
            named = [n for n in inside if _OUT.fullmatch(n.rpartition(".")[2])]
            if named or not scope:
                return _one(named, "last projection of attention"), scope
            scope = scope.rpartition(".")[0]

    def _taken(self, name: str, linears: Linears, attentions: tuple[tuple[str, ...], ...]) -> bool:
        """Whether a projection is part of attention."""
        for paths in attentions:
            out, scope = self._out(linears, paths)
            if name in (*paths, out) or (scope and name.startswith(f"{scope}.")):
                return True
        return False

    def _attention(self, linears: Linears, paths: tuple[str, ...]) -> dict[Site, Location]:
        out, _ = self._out(linears, paths)
        parts = (Site.ATTN_Q, Site.ATTN_K, Site.ATTN_V)
        if len(paths) == 1:
            columns = self._columns(paths[0], out, linears)
            sites = {
                site: output(paths[0], columns=_always(span))
                for site, span in zip(parts, columns, strict=True)
            }
        else:
            sites = {site: output(path) for site, path in zip(parts, paths, strict=True)}
            for site, path in zip(parts, paths, strict=True):
                self._found(site, path, linears, "by its name")
        self._note(Site.ATTN_MID, f"the input of {out}")
        self._found(Site.ATTN_O, out, linears, "the last projection of attention")
        return {
            **sites,
            Site.ATTN_MID: input_of(out),
            Site.ATTN_O: output(out),
            **self._keys_and_values(paths[0]),
            Site.ATTN_OUT: output(out, reads=paths[0]),
        }

    def _found(self, site: Site, path: str, linears: Linears, reason: str) -> None:
        d_in, d_out = linears[path]
        self._note(site, f"{path}, {d_in} -> {d_out}, {reason}")

    def _keys_and_values(self, query: str) -> dict[Site, Location]:
        path = query
        while path:
            path = path.rpartition(".")[0]
            if "ALL_ATTENTION_FUNCTIONS" in _source(self.layers[0].get_submodule(path), "forward"):
                self._note(Site.ATTN_KV, f"{path}, which calls transformers' attention interface")
                return {Site.ATTN_KV: attention(path)}
        self._note(Site.ATTN_KV, "left out, no call of transformers' attention interface is seen")
        return {}

    def _columns(self, fused: str, out: str, linears: Linears) -> tuple[Columns, ...]:
        """Where query, key and value are in one projection: the values' columns are tried."""
        width, inner = linears[fused][1], linears[out][0]
        heads = getattr(self.model.config, "num_attention_heads", 1)
        layouts = _layouts(width, inner, heads)
        meta = self.model.device.type == "meta"
        fits = [each for each in layouts if not meta and self._silences(fused, out, each[2])]
        if len(fits) != 1:
            tried = " or ".join("/".join(map(str, each)) for each in layouts) or "none"
            raise UnknownArchitecture(
                f"cannot tell which columns of {self.path}.*.{fused} ({width}) are query, key and "
                f"value; of {tried}, {len(fits)} fit. Weights are needed to try them; say it with "
                "deltakit.register_family(deltakit.Family(...))."
            )
        spans = ", ".join(map(str, fits[0]))
        self._note(
            "attn.q, attn.k, attn.v", f"{fused}{spans}: with the last at zero, {out} is fed 0"
        )
        return fits[0]

    def _silences(self, fused: str, out: str, values: Columns) -> bool:
        """Whether attention passes nothing on where these columns are zero.

        Then it makes no difference what its last projection multiplies that with.
        """
        names = {module: name for name, module in self.model.named_modules()}
        layer = self.layers[0]
        zero = _without_columns(layer.get_submodule(fused), values)
        silent = {f"{names[layer.get_submodule(fused)]}.{key}": at for key, at in zero.items()}
        last = layer.get_submodule(out)
        cut = {**silent, f"{names[last]}.weight": torch.zeros_like(last.get_parameter("weight"))}
        return torch.equal(self._run(silent), self._run(cut))

    @torch.no_grad()
    def _run(self, values: dict[str, Tensor]) -> Tensor:
        """What the model returns with these values in the place of its own."""
        inputs = {k: v.to(self.model.device) for k, v in self.model.dummy_inputs.items()}
        try:
            with torch.random.fork_rng():  # the same dropout each time, and none of it left behind
                torch.manual_seed(0)
                return torch.func.functional_call(self.model, values, (), inputs)[0]
        except Exception as error:  # whatever an unknown model does without the inputs it needs
            raise UnknownArchitecture(
                f"{type(self.model).__name__} does not run on its dummy_inputs "
                f"({type(error).__name__}), so which columns of a fused projection are query, key "
                "and value cannot be tried. Say it with dk.register_family(dk.Family(...))."
            ) from error

    # ----------------------------------------------------------------------- feed-forward, block

    def _ffn(self, linears: Linears, d: int) -> dict[Site, Location]:
        downs = [n for n, (wide, narrow) in linears.items() if narrow == d and wide != d]
        if not downs:
            self._note("ffn", "left out, no projection back to the stream is seen")
            return {}
        down = _one(downs, "second feed-forward projection")
        inner = linears[down][0]
        ups = [n for n, widths in linears.items() if widths in ((d, inner), (d, 2 * inner))]
        more = [n for n in linears if n not in (*ups, down)]
        more += [n for n, p in self.layers[0].named_parameters() if p.ndim > 2]
        if more:
            self._note("ffn", f"left out, as next to {down} there is {', '.join(more)}")
            return {}
        firsts = self._firsts(ups, linears, inner)
        self._found(Site.FFN_DOWN, down, linears, "the only projection back to the stream")
        self._note(Site.FFN_MID, f"the input of {down}")
        return {
            **firsts,
            Site.FFN_MID: input_of(down),
            Site.FFN_DOWN: output(down),
            Site.FFN_OUT: output(down, reads=ups[0]),
        }

    def _firsts(self, ups: list[str], linears: Linears, inner: int) -> dict[Site, Location]:
        """The first projections: one, gate and up, or both in one."""
        if len(ups) == 2:
            gate = _one(_named(ups, _GATE), "gate of the feed-forward")
            up = _one(_named(ups, _UP), "linear part of the feed-forward")
            self._found(Site.FFN_GATE, gate, linears, "by its name")
            self._found(Site.FFN_UP, up, linears, "by its name")
            return {Site.FFN_GATE: output(gate), Site.FFN_UP: output(up)}
        up = _one(ups, "first feed-forward projection")
        if linears[up][1] == inner:
            self._found(Site.FFN_UP, up, linears, "the only projection to the inner width")
            return {Site.FFN_UP: output(up)}
        if not _named([up], _GATE_UP):
            self._note("ffn.gate, ffn.up", f"left out, {up} does not say which half is the gate")
            return {}
        self._found(Site.FFN_UP, up, linears, "the gate and then this, by its name")
        halves = (Columns(first=start, width=inner) for start in (0, inner))
        sites = (Site.FFN_GATE, Site.FFN_UP)
        return {s: output(up, columns=_always(h)) for s, h in zip(sites, halves, strict=True)}

    def _block(self, query: str) -> dict[Site, Location]:
        """The layer's output, if the stream is normalised on the way into attention."""
        norms = []
        for path, surely in _calls(self.layers[-1]):
            if path == query:
                break
            if _is_norm(self.layers[-1].get_submodule(path)):
                norms.append((path, surely))
        else:
            self._note(Site.BLOCK_OUT, "left out, the order of calls is not to be seen")
            return {}
        if norms and all(surely for _, surely in norms):
            self._note(Site.BLOCK_OUT, f"the layer's output, as {norms[0][0]} is before attention")
            return {Site.BLOCK_OUT: output("")}
        reason = f"{norms[0][0]} is called under a condition" if norms else "no norm is"
        self._note(Site.BLOCK_OUT, f"left out, {reason} before attention")
        return {}

    def _summands(self, sites: dict[Site, Location], normed: bool) -> dict[Site, Location]:
        """The sites without attn.out and ffn.out, if what is added to the stream leaves a norm."""
        kept = dict(sites)
        for site in (Site.ATTN_OUT, Site.FFN_OUT):
            if site in sites and normed:
                self._note(site, f"left out, a norm follows {kept.pop(site).path}")
            elif site in sites:
                at = sites[site]
                self._note(site, f"what leaves {at.path}; x is what {at.reads} is given")
        return kept

    def _sandwich(self, sites: dict[Site, Location]) -> bool:
        """True if norms come before and behind both sub-modules: what is added leaves a norm."""
        if Site.FFN_DOWN not in sites or Site.BLOCK_OUT not in sites:
            return False
        layer, down = self.layers[-1], sites[Site.FFN_DOWN].path
        behind = list(_calls(layer))
        while down in (path for path, _ in behind):
            behind = behind[[path for path, _ in behind].index(down) + 1 :]
        return any(surely and _is_norm(layer.get_submodule(path)) for path, surely in behind)


def _layouts(width: int, inner: int, heads: int) -> list[tuple[Columns, ...]]:
    """The known ways to have query, key and value in `width` columns, queries `inner` of them."""
    rest, odd = divmod(width - inner, 2)
    if odd or rest <= 0 or rest > inner:
        return []
    firsts = ((0, inner), (inner, rest), (inner + rest, rest))
    layouts = [tuple(Columns(first=first, width=size) for first, size in firsts)]
    head = inner // heads
    if rest == inner and heads > 1:
        layouts.append(
            tuple(
                Columns(first=part * head, width=head, stride=3 * head, count=heads)
                for part in range(3)
            )
        )
    return layouts


def _without_columns(linear: nn.Module, columns: Columns) -> dict[str, Tensor]:
    """The parameters of a projection, with these columns of what it returns at zero."""

    def without(whole: Tensor) -> Tensor:
        return columns.write(whole, torch.zeros_like(columns.read(whole)))

    transposed = isinstance(linear, nn.Linear)  # Conv1D has its output last
    return {
        name: without(value.t()).t() if transposed else without(value)
        for name, value in linear.named_parameters()
    }


def _always(columns: Columns) -> Callable[[Any], Columns]:
    return lambda config: columns


def _is_norm(module: nn.Module) -> bool:
    return bool(re.search("norm(1d|2d)?$", type(module).__name__, re.IGNORECASE))


# ----------------------------------------------------------------------- the order in which it runs


def _source(module: nn.Module, method: str) -> str:
    """The source of a method, nothing where there is none to be had."""
    try:
        return textwrap.dedent(inspect.getsource(inspect.getattr_static(type(module), method)))
    except (OSError, TypeError, AttributeError):
        return ""


def _calls(
    module: nn.Module, methods: tuple[str, ...] = ("forward",), prefix: str = ""
) -> Iterator[tuple[str, bool]]:
    """The sub-modules without any of their own, in the order in which the source calls them.

    Each with whether it is called without a condition. `methods` are those that are being read,
    the innermost last.
    """
    children = dict(module.named_modules())
    for node, surely in _in_order(ast.parse(_source(module, methods[-1])), True):
        called = isinstance(node, ast.Call)
        path = _path(node.func if isinstance(node, ast.Call) else node, module)
        if not path:
            continue
        if called and path in children:
            child = children[path]
            if _is_norm(child) or next(child.children(), None) is None:
                yield f"{prefix}{path}", surely
                continue
            inside = _calls(child, prefix=f"{prefix}{path}.")
        elif path in vars(type(module)) and path not in methods:
            inside = _calls(module, (*methods, path), prefix)
        else:
            continue
        yield from ((name, surely and sure) for name, sure in inside)


def _in_order(node: ast.AST, surely: bool) -> Iterator[tuple[ast.expr, bool]]:
    """Calls and attributes in the order of evaluation; False where a condition guards them."""
    guarded = isinstance(node, ast.If | ast.IfExp)
    for child in ast.iter_child_nodes(node):
        called = isinstance(node, ast.Call) and child is node.func
        tested = guarded and child is getattr(node, "test", None)
        sure = surely and (not guarded or tested)
        if called and isinstance(child, ast.Attribute):
            yield from _in_order(child.value, sure)  # the call itself comes after its arguments
        else:
            yield from _in_order(child, sure)
    if isinstance(node, ast.Call | ast.Attribute):
        yield node, surely


def _path(node: ast.expr, module: nn.Module) -> str:
    """``self.a.b`` and ``self.a[-1]`` as paths of sub-modules; nothing for anything else."""
    found = re.fullmatch(r"self((?:\.\w+|\[-?\d+\])+)", ast.unparse(node))
    if found is None:
        return ""
    words: list[str] = []
    for word in re.findall(r"\w+|-\d+", found[1]):
        inside = len(list(module.get_submodule(".".join(words)).children())) if word < "0" else 0
        words.append(str(int(word) + inside) if word < "0" else word)
    return ".".join(words)
