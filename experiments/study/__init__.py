"""How is a study planned, run, resumed and priced?"""
