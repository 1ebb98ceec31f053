"""What an attacker can extract and what the model lost: functions of (scores, spans, controls) -> measurements."""
