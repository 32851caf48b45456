"""What is wrong between Label Studio, Tandem and the machine it runs on, and what to do about it."""
