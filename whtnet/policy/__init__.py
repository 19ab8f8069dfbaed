"""Replacement policies: `rules` as data, their `sites`, `choosing` them, `builders` of layers, `apply`, `fitting`."""

from whtnet.policy.apply import apply_policy_
from whtnet.policy.canonical import canonical_policy, explicit_policy
from whtnet.policy.choosing import choose_sites
from whtnet.policy.fitting import SiteFit, fit_layers_
from whtnet.policy.report import Replacement, Report
from whtnet.policy.rules import Policy, PolicyError, Rule, load_policy, shipped_policies
from whtnet.policy.sites import Site, SiteMap, find_sites

__all__ = [
    "Policy",
    "PolicyError",
    "Replacement",
    "Report",
    "Rule",
    "Site",
    "SiteFit",
    "SiteMap",
    "apply_policy_",
    "canonical_policy",
    "choose_sites",
    "explicit_policy",
    "find_sites",
    "fit_layers_",
    "load_policy",
    "shipped_policies",
]
