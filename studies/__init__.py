"""The paper's studies on the embedded pair: experiments, their units, and what is shown of them."""
