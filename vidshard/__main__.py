from vidshard.cli.main import main

main()
