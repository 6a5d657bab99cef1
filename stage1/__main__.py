from stage1.cli.main import main

main()
