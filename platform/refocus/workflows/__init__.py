"""What jobs and commands do: whole tasks that join the rooms below and speak to a person."""
