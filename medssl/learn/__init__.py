"""The objective of a pretraining: tasks, consistency losses, views, heads and teacher as one module."""

from medssl.learn.build import build_objective
from medssl.learn.looking import beside_trivial, check_crop, citations, freeze_unreached, pictures, small_batch, trivial
from medssl.learn.objective import Asked, Objective
from medssl.learn.terms import BuiltTerm, Term, TermOptions, resolve_losses, resolve_tasks, resolved_terms, term_schemas

__all__ = [
    "Asked",
    "BuiltTerm",
    "Objective",
    "Term",
    "TermOptions",
    "beside_trivial",
    "build_objective",
    "check_crop",
    "citations",
    "freeze_unreached",
    "pictures",
    "resolve_losses",
    "resolve_tasks",
    "resolved_terms",
    "small_batch",
    "term_schemas",
    "trivial",
]
