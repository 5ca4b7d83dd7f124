"""Learning prompts with torch. Never imported by the service or the client."""
