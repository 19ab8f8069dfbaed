"""Replacement policies: rules as data (`rules`), where they can apply (`sites`), and putting layers in (`apply`)."""

from whtnet.policy.apply import Replacement, Report, apply_policy_
from whtnet.policy.rules import Policy, PolicyError, Rule, load_policy, shipped_policies
from whtnet.policy.sites import Site, SiteMap, find_sites

__all__ = [
    "Policy",
    "PolicyError",
    "Replacement",
    "Report",
    "Rule",
    "Site",
    "SiteMap",
    "apply_policy_",
    "find_sites",
    "load_policy",
    "shipped_policies",
]
