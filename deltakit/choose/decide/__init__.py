"""Decisions of a choice: arms that go on, what the budget allows, how sure the choice is."""
