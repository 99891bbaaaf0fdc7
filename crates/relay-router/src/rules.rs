//! Rules: which events go to which targets.
