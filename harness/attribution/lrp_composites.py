"""Composites of layer-wise relevance propagation: which layer has which rule, by name or as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

from harness.attribution.lrp_rules import RULES, rule_of
from harness.attribution.lrp_tape import Composite
from harness.core.errors import OutOfRange, UnknownName
from harness.core.values import checked_options, options_of

__all__ = ["COMPOSITES", "composite_of"]

COMPOSITES: Mapping[str, Composite] = MappingProxyType(
    {
        "epsilon": Composite("epsilon", "epsilon", pool="epsilon"),
        "alpha1beta0_box": Composite("alpha_beta", "epsilon", first="zbox"),
        "alpha1beta0_flat": Composite("alpha_beta", "epsilon", first="flat"),
        "alpha2beta1_box": Composite("alpha_beta", "epsilon", first="zbox", options={"alpha_beta": {"alpha": 2.0}}),
        "epsilon_plus": Composite("zplus", "epsilon"),
        "gamma_box": Composite("gamma", "epsilon", first="zbox"),
        "wsquare": Composite("alpha_beta", "epsilon", first="wsquare"),
        "by_depth": Composite(
            "epsilon", "epsilon", first="zbox", low="gamma", middle="epsilon", high="epsilon",
            position_options={"high": {"epsilon": 0.0}},
        ),
    }
)  # fmt: skip
"""Rules by kind of layer, by name. ``alpha1beta0_box`` is that of the MS disability study,
``by_depth`` that of Montavon et al. 2019."""

_POSITIONS = tuple(one.name for one in fields(Composite) if one.type == "str")


def composite_of(
    text: str, *, epsilon: float = 1e-6, gamma: float = 0.25, low: float = 0.0, high: float = 1.0
) -> Composite:
    """Composite of a name or of rules by position.

    Parameters
    ----------
    text : name of a composite, name of a rule for all convolutions and linear layers, or
        rules by position, ``first:flat+convolution:alpha_beta:alpha=2+linear:epsilon``. The
        first part can be a name, of which the others change some positions; without it,
        layers have the ε-rule. Positions are the fields of :class:`Composite`; those in the
        text must have a layer in the network
    epsilon, gamma, low, high : options of the ε-rule, the γ-rule and the z^B-rule, where the
        text states none

    Raises
    ------
    UnknownName
        If there is no such composite, rule, position or option of a rule.
    OutOfRange
        If a part is not ``position:rule:option=value``, or an option has a wrong value.
    """
    name, *parts = text.split("+")
    if ":" in name:
        name, parts = "epsilon", [name, *parts]
        found = Composite("epsilon", "epsilon")
    elif name in COMPOSITES:
        found = COMPOSITES[name]
    elif name in RULES:
        found = Composite(name, name)
    else:
        raise UnknownName("composite or rule of LRP", name, (*COMPOSITES, *RULES))
    given = {"epsilon": {"epsilon": epsilon}, "gamma": {"gamma": gamma}, "zbox": {"low": low, "high": high}}
    found = replace(found, options={**given, **found.options})
    for part in parts:
        found = _with_rule(found, part)
    return found


def _with_rule(composite: Composite, part: str) -> Composite:
    """A composite with one position changed by ``position:rule:option=value``."""
    position, _, rest = part.partition(":")
    rule, *given = rest.split(":")
    if not rule:
        raise OutOfRange(
            f"a part of a composite of LRP must be position:rule or position:rule:option=value, got {part!r}"
        )
    if position not in _POSITIONS:
        raise UnknownName("position of a composite of LRP", position, _POSITIONS)
    options = {**composite.position_options, position: _options(rule, given)}
    required = (*composite.required, position)
    changed: dict[str, Any] = {position: rule, "position_options": options, "required": required}
    return replace(composite, **changed)


def _options(rule: str, given: list[str]) -> dict[str, Any]:
    """Options of a rule from ``option=value``."""
    function = rule_of(rule)
    found: dict[str, Any] = {}
    for one in given:
        option, _, value = one.partition("=")
        if option not in options_of(function):
            raise UnknownName(f"option of the rule {rule} of LRP", option, options_of(function))
        try:
            found[option] = float(value)
        except ValueError:
            raise OutOfRange(f"option {option} of the rule {rule} of LRP must be a number, got {value!r}") from None
    return checked_options(function, found, f"rule {rule} of LRP")
